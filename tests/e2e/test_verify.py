"""`precis verify`: each change to a promoted champion is named; what was not changed is as judged.

Over 250 lines: the changes are one list.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import once
import pytest
from register.registry import files_of, flip, write
from stack import promoted_store

from flows.cli.entry import main
from flows.verify import verify_model
from tasks.register import claims
from tasks.serving.summarizer import pyfunc
from tasks.tracking import artifacts, connection

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
PACKAGE = pyfunc.PACKAGE
CHALLENGER = "challenger.json"


class Store:
    """A copy of the promoted store, for edits."""

    def __init__(self, folder: Path) -> None:
        self.client = connection.connect()
        self.folder, self.version = folder, self.client.get_model_version("demo", "1")
        self.run = self.client.get_run(self.version.tags[claims.RUN_ID])
        self.run_id = self.run.info.run_id
        root = folder / "mlruns/artifacts/demo"
        self.artifacts, self.model = root / self.run_id / "artifacts", files_of(self.client, "demo")

    def tag(self, name: str, value: str) -> None:
        self.client.set_model_version_tag("demo", "1", name, value)

    def edit(self, file: str, change: Callable[[Any], Any]) -> None:
        path = self.artifacts / file
        values = json.loads(path.read_bytes())
        write(path, json.dumps(change(values) or values).encode())

    def edit_table(self, file: str, column: str, value: Any) -> None:
        def change(table: Any) -> None:
            table["data"][1][table["columns"].index(column)] = value

        self.edit(file, change)


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Store:
    once.copy_store(promoted_store(tmp_path_factory), home)
    artifacts._copies.clear()
    artifacts._roots.clear()
    return Store(home)


def package_edit(name: str, old: str, new: str) -> Callable[[Store], None]:
    def change(store: Store) -> None:
        text = (store.model / name).read_text()
        assert old in text
        write(store.model / name, text.replace(old, new, 1).encode())

    return change


def linked(store: Store, file: Path) -> Path:
    """Move a file to the top and leave a link; returns where it is."""
    elsewhere = file.rename(store.folder / file.name)
    file.symlink_to(elsewhere)
    return elsewhere


def own_history(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.run.data.tags["precis.history"])
    return found


def in_database(statement: str) -> Callable[[Store], None]:
    def change(store: Store) -> None:
        with sqlite3.connect(store.folder / "mlruns/mlflow.db") as database:
            assert database.execute(statement).rowcount > 0
        database.close()

    return change


CHANGES: dict[str, tuple[Callable[[Store], Any], str]] = {
    "a flipped byte in weights": (
        lambda s: flip(s.model / PACKAGE / "model.safetensors"), "model.safetensors was changed",
    ),
    "outer code": (
        package_edit("pyfunc.py", "texts = [summary.text", "texts = ['HACKED'"), "pyfunc.py was changed",
    ),
    "outer code and its manifest": (
        lambda s: (
            package_edit("pyfunc.py", "texts = [summary.text", "texts = ['HACKED'")(s),
            pyfunc.write_manifest(s.model),
        ),
        "precis_manifest.json is not the one that version 1 holds",
    ),
    "another outer file, check and all": (
        lambda s: write(s.model / "pyfunc.py", b"import mlflow"), "pyfunc.py was changed",
    ),
    "inner code": (
        package_edit(f"{PACKAGE}/summarizer/output.py", '"""', '"""HACKED '), "output.py was changed",
    ),
    "settings": (
        package_edit(f"{PACKAGE}/summarizer.json", "max_new_tokens", "max_new_tokens "),
        "summarizer.json was changed",
    ),
    "prompt": (
        package_edit(f"{PACKAGE}/summarizer.json", "{document}", "Lie. {document}"),
        "summarizer.json was changed",
    ),
    "prompt of other engines": (
        package_edit(f"{PACKAGE}/chat_template.jinja", "{", "{# x #}{"), "chat_template.jinja was changed",
    ),
    "files gone": (lambda s: shutil.rmtree(s.model), "its files are gone"),
    "the package gone": (lambda s: shutil.rmtree(s.model / PACKAGE), "is missing"),
    "a file beside MLmodel": (lambda s: write(s.model / "pandas.py", b"x = 1"), "pandas.py was added; "),
    "a file in the package": (
        lambda s: write(s.model / PACKAGE / "\udcff\n.py", b"x = 1"), r"\\udcff\\n.py' was added; delete it",
    ),
    "Python's cache beside MLmodel": (
        lambda s: (s.model / "__pycache__").mkdir(), "__pycache__ was added, and Python may run",
    ),
    "a link in a file's place": (
        lambda s: linked(s, s.model / PACKAGE / "summarizer.json"), "summarizer.json is a link to /",
    ),
    "a link that leads nowhere": (
        lambda s: linked(s, s.model / "MLmodel").unlink(), "MLmodel is a link that leads to no file",
    ),
    "a link to a folder of code": (
        lambda s: (s.model / PACKAGE / "summarizer/generate").symlink_to(s.folder), "generate was added",
    ),
    "a prediction": (
        lambda s: s.edit_table(f"sealed/gate/{CHALLENGER}", "text", "edited"),
        "challenger.json was changed after it was scored",
    ),
    "a score": (
        lambda s: s.edit_table(f"sealed/gate/{CHALLENGER}", "rougeL", 1.0),
        "challenger.json was changed after it was scored",
    ),
    "an opponent's score": (
        lambda s: s.edit_table("sealed/gate/opponent.json", "rougeL", 0.0),
        "opponent.json was changed after it was scored",
    ),
    "a score, and the digest of its table": (
        lambda s: (
            s.edit_table(f"sealed/gate/{CHALLENGER}", "rougeL", 1.0),
            s.edit("sealed/gate/gate_inputs.json",
                   lambda v: v["scores"]["challenger"].update(table_digest="")),
        ),
        "its scores in gate_inputs.json are not those",
    ),
    "a stored prediction where it was written": (
        lambda s: s.edit_table(f"sealed/predictions/{CHALLENGER}", "text", "edited"),
        "the predictions of the challenger, was changed",
    ),
    "an open row": (lambda s: s.edit_table(f"gate/{CHALLENGER}", "text", "edited"), "is not the open rows"),
    "the verdict": (
        lambda s: s.edit("sealed/gate/decision.json", lambda v: v.update(verdict="REJECT")),
        "is not what its scores give: verdict differ",
    ),
    "what was told": (
        lambda s: s.edit("gate/shown.json", lambda v: v.update(rows=1)), "does not tell what was decided",
    ),
    "the gate's settings": (
        lambda s: s.edit("sealed/gate/gate_inputs.json", lambda v: v["gate"].update(alpha=0.2)),
        "is not what its scores give",
    ),
    "the recipe": (
        lambda s: write(s.artifacts / "recipe.yaml",
                        (s.artifacts / "recipe.yaml").read_bytes().replace(b"seed: 42", b"seed: 7")
                        + b"\nprompt: {template: 'Lie. {document}'}\n"),
        "recipe.yaml is not",
    ),
    "the adapter": (
        lambda s: flip(next(s.folder.glob("mlruns/artifacts/demo/*/artifacts/adapter/*.safetensors"))),
        "the adapter, was changed",
    ),
    "decision deleted": (lambda s: shutil.rmtree(s.artifacts / "sealed/gate"), "decision|gate"),
    "run deleted": (lambda s: s.client.delete_run(s.run_id), "mlflow runs restore --run-id"),
    "run gone": (
        lambda s: in_database(f"UPDATE runs SET run_uuid = 'x' WHERE run_uuid = '{s.run_id}'")(s),
        "is gone, so its decision cannot be computed again",
    ),
    "logged model gone": (
        lambda s: s.client.delete_logged_model(s.version.source.removeprefix("models:/")),
        "its logged model .* is gone|is FAILED|is DELETED",
    ),
    "digest tag": (lambda s: s.tag(claims.DIGEST, "0" * 64), "tag precis.model_digest holds 0000"),
    "served digest tag": (lambda s: s.tag(pyfunc.SERVED_DIGEST, "1" * 64), "precis.served_digest holds"),
    "served digest tag gone": (
        lambda s: s.client.delete_model_version_tag("demo", "1", pyfunc.SERVED_DIGEST),
        "precis.served_digest holds nothing",
    ),
    "run tag": (lambda s: s.tag(claims.RUN_ID, "f" * 32), "its tag precis.run_id holds"),
    "score tag": (lambda s: s.tag("precis.rougeL", "0.9999"), "its tag precis.rougeL holds '0.9999'"),
    "evaluation tag": (lambda s: s.tag("precis.evaluation_digest", "x"), "precis.evaluation_digest holds"),
    "tokenizer tag": (lambda s: s.tag(claims.TOKENIZER, "x"), "precis.tokenizer_digest"),
    "succession tag": (lambda s: s.tag(claims.SUCCEEDS, "7"), "precis.succeeds holds '7'"),
    "garbage for a tag": (lambda s: s.tag(claims.SUCCEEDS, "\u0000x"), "precis.succeeds holds"),
    "finished tag gone": (
        lambda s: s.client.delete_model_version_tag("demo", "1", claims.FINISHED),
        "its promotion is not finished",
    ),
    "verdict tag": (
        lambda s: s.client.set_tag(s.run_id, "precis.verdict", "REJECT"), "precis.verdict holds 'REJECT'",
    ),
    "metric": (
        lambda s: in_database(
            f"UPDATE latest_metrics SET value = 0.99 WHERE run_uuid = '{s.run_id}' "
            "AND key = 'challenger/rougeL'")(s),
        "its metric challenger/rougeL is 0.99",
    ),
    "description": (
        lambda s: s.client.update_model_version("demo", "1", "PROMOTED demo: rougeL +0.9"),
        "its description is not the decision's",
    ),
    "history line of the version": (
        lambda s: s.tag(claims.RECORD, json.dumps(own_history(s) | {"gain": 0.9})), "gain: 0.9, was",
    ),
    "history line of the run": (
        lambda s: s.client.set_tag(s.run_id, "precis.history", json.dumps(own_history(s) | {"looks": 1})),
        "looks: 1, was 2|looks: 1",
    ),
    "history line's time": (
        lambda s: s.client.set_tag(
            s.run_id, "precis.history", json.dumps(own_history(s) | {"time": "2020-01-01T00:00:00+00:00"})),
        "its time is '2020",
    ),
    "garbage for a history line": (
        lambda s: s.client.set_tag(s.run_id, "precis.history", "{"), "instead of a history entry",
    ),
    "alias removed by hand": (
        lambda s: s.client.delete_registered_model_alias("demo", "champion"), "'champion' is not set",
    ),
    "alias moved by hand": (
        lambda s: s.client.set_registered_model_alias(
            "demo", "champion", s.client.create_model_version("demo", s.version.source).version),
        "'champion' points at version 2, .*last promotion is version 1",
    ),
}  # fmt: skip


# What hides no other change: one store and one verify for all of a line.
TOGETHER = (
    ("outer code", "inner code", "settings", "prompt", "prompt of other engines",
     "a file beside MLmodel", "a file in the package", "Python's cache beside MLmodel",
     "a link in a file's place", "a link that leads nowhere", "a link to a folder of code"),
    ("a stored prediction where it was written", "an open row", "what was told", "the recipe", "the adapter"),
    ("score tag", "evaluation tag", "tokenizer tag", "verdict tag", "metric", "description",
     "history line of the version", "history line of the run"),
)  # fmt: skip
GROUPED = {name for group in TOGETHER for name in group}


@pytest.mark.parametrize(
    "names", [*TOGETHER, *((name,) for name in CHANGES if name not in GROUPED)], ids=", ".join
)
def test_each_change_is_named(
    names: tuple[str, ...], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words, with exit status 1, never a traceback; nothing is repaired on the way."""
    for name in names:
        CHANGES[name][0](store)
    before = dump(store)
    assert main(["verify", "demo", "--rows", "0"]) == 1
    printed = capsys.readouterr()
    for name in names:
        assert re.search(CHANGES[name][1], printed.out), (name, printed.out + printed.err)
    assert "Traceback" not in printed.out + printed.err
    assert dump(store) == before


def dump(store: Store) -> list[str]:
    """The registry's content."""
    with sqlite3.connect(store.folder / "mlruns/mlflow.db") as database:
        lines = [line for line in database.iterdump() if line.startswith("INSERT")]
    database.close()
    return lines


def test_what_was_not_changed_is_as_judged(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Summaries are written again; `--all` reads the refusal too, and finds it edited."""
    assert main(["verify", "demo@champion", "--rows", "2", "--all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["as_judged"]
    assert found["model"]["checked"][-1] == "1 entries without a version in the history"
    assert "2 stored summaries, written again and equal" in found["versions"]["1"]["checked"]
    [refused] = [
        run
        for run in store.client.search_runs([store.run.info.experiment_id])
        if run.data.tags.get("precis.verdict") == "REJECT"
    ]
    record = json.loads(refused.data.tags["precis.history"])
    text = json.dumps(record | {"gain": 0.5})
    store.client.set_tag(refused.info.run_id, "precis.history", text)
    found = verify_model("demo", 0, every=True).as_dict()
    [difference] = found["model"]["differences"]
    assert "gain differ from the decision" in difference


def test_what_is_not_there_is_a_sentence(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for reference, says in (
        ("demos", "nearest: 'demo'"),
        ("demo/7", "has no version 7; it has: 1"),
        ("demo@best", "no alias 'best'"),
        ("demo/x", "a version is a number"),
    ):
        assert main(["verify", reference]) == 1
        assert says in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["verify", "demo"]) == 1
    assert "does not answer" in capsys.readouterr().err
