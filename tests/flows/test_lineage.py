"""`precis lineage` and `precis who-learned`: where a version came from, and where a row went."""

from __future__ import annotations

import io
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from register import made_store
from register.made_store import NAME, Store

from flows.cli.entry import main
from tasks.tracking import dataset_inputs, mlflow_run


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The command sets TERM's handler."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def store(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Two versions, a refusal and a rollback."""
    yield made_store.put(home, tmp_path_factory)
    mlflow.set_tracking_uri(None)


class Precis:
    """`precis WORDS` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: str) -> str:
        assert main(list(words)) == 0, self.capsys.readouterr().err
        return self.capsys.readouterr().out

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))

    def refused(self, *words: str, status: int = 1) -> str:
        assert main(list(words)) == status
        out, err = self.capsys.readouterr()
        assert out == ""
        return err


@pytest.fixture
def precis(capsys: pytest.CaptureFixture[str]) -> Precis:
    return Precis(capsys)


def test_a_version_tells_what_it_was_made_from(store: Store, precis: Precis) -> None:
    """Data, base and revision, adapter, recipe, commit, run and predecessor, by digests."""
    found = precis.json("lineage", f"{NAME}/2")
    made = store.second
    assert found["predecessor"] == 1
    assert found["model_digest"] == made.model.digest
    assert found["trained_by_run"] == found["registered_by_run"] == made.run_id
    assert [d["train_digest"] for d in found["datasets"]] == [made.dataset.train_digest]
    assert found["base"] == {"model": "llama <b>", "revision": "abc", "digest": "base-digest"}
    assert found["adapter"] == {"uri": made.adapter.uri, "digest": made.adapter.digest}
    assert found["code"] == {"commit": "c0ffee2", "dirty": True}
    assert found["recipe"] == f"runs:/{made.run_id}/recipe.yaml"
    text = precis("lineage", f"models:/{NAME}/2")
    for part in ("v1", "20 training rows", "llama <b>, revision abc", "c0ffee2 with changes"):
        assert part in text, part


def test_a_rollback_is_traced_to_the_run_that_trained(store: Store, precis: Precis) -> None:
    """NAME and NAME@champion are the version that the rollback made, of the first one's model."""
    for reference in (NAME, f"{NAME}@champion"):
        found = precis.json("lineage", reference)
        assert (found["version"], found["rollback_to"], found["predecessor"]) == (3, 1, 2)
        assert found["trained_by_run"] == store.first.run_id != found["registered_by_run"]
        assert found["adapter"]["digest"] == store.first.adapter.digest


def test_what_is_gone_is_called_not_known(store: Store, precis: Precis) -> None:
    """A deleted manifest, several data sets, and a run that MLflow has no more: nothing is guessed."""
    artifacts = Path("mlruns/artifacts") / NAME
    (artifacts / store.second.run_id / "artifacts/manifest.yaml").unlink()
    assert precis.json("lineage", f"{NAME}/2")["code"] is None
    tags = store.client.get_run(store.second.run_id).data.tags
    (step,) = (tag for tag in tags if tag.startswith("precis.step.ingest."))
    other = tags[step].replace(store.second.dataset.digest, "f" * 64)
    store.client.set_tag(store.second.run_id, f"{step[:-1]}x", other)
    assert "which of these is not known" in precis("lineage", f"{NAME}/2")
    for tag in ("precis.model_digest", "precis.run_id"):
        value = {"precis.run_id": "0" * 32}.get(tag, store.second.model.digest)
        store.client.set_model_version_tag(NAME, "2", tag, value)
    found = precis.json("lineage", f"{NAME}/2")
    assert (found["run_is_known"], found["datasets"], found["adapter"]) == (False, [], None)
    assert "deleted from MLflow" in precis("lineage", f"{NAME}/2")


def test_no_such_version(store: Store, precis: Precis) -> None:
    """Each names what exists; a version of someone else's is no traceback."""
    store.client.create_registered_model("foreign")
    store.client.create_model_version("foreign", "/tmp/nothing")
    for reference, message in {
        f"{NAME}/9": "no version 9; it has: 1, 2, 3",
        "sum": "nearest: 'summ'",
        f"{NAME}@best": "no alias 'best'",
        f"{NAME}/last": "a version is a number",
        "foreign/1": "was not made by precis",
        "foreign": "has no alias 'champion'",
    }.items():
        assert message in precis.refused("lineage", reference), reference


def learners(found: Any) -> list[tuple[int | None, str]]:
    return [(one["version"], one["rows"][0]["how"]) for one in found["learners"]]


def test_who_learned_a_row(store: Store, precis: Precis) -> None:
    """By its id: versions, the rollback's too, and refused challengers by their run."""
    assert learners(precis.json("who-learned", "row-1-4")) == [(1, "id"), (3, "id")]
    assert learners(precis.json("who-learned", "row-2-4", "--model", NAME)) == [(2, "id")]
    refused = precis.json("who-learned", "row-3-4")["learners"]
    assert [(one["version"], one["run_id"]) for one in refused] == [(None, store.refused.run_id)]
    # An evaluation row is judged, not learned.
    for unknown in ("row-99-4", "row-1-400", "row-1"):
        found = precis.json("who-learned", unknown)
        assert (found["learners"], found["searched"], found["unknown"]) == ([], 4, [])
    assert "none of 4 trained models" in precis("who-learned", "row-1")


def test_who_learned_a_document(
    store: Store, precis: Precis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its text, wrapped otherwise or in other letters, within another, from a file or standard input."""
    document = next(
        str(row.document) for row in made_store.rows_of(1) if len(str(row.document)) > 130
    )
    texts = {
        "exact": document.replace("\n", "\r\n  "),
        "similar": document.upper().replace(",", " ;"),
        "part": f"{' '.join(f'other{n} words{n}' for n in range(60))}. {document}",
    }
    for how, text in texts.items():
        Path("asked.txt").write_bytes(text.encode())
        found = precis.json("who-learned", "--document", "asked.txt")
        assert {how} <= {row["how"] for row in found["learners"][0]["rows"]}, how
        assert {one["version"] for one in found["learners"]} >= {1, 3}
        stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
        for words in (["-"], ["--document", "-"]):
            stdin.buffer.seek(0)
            monkeypatch.setattr(sys, "stdin", stdin)
            assert precis.json("who-learned", *words) == found
    Path("asked.txt").write_text(
        "Nobody ever wrote of turbines, rotors and blades in these dialogues."
    )
    assert precis.json("who-learned", "--document", "asked.txt")["learners"] == []


def test_rows_that_are_gone_are_told(store: Store, precis: Precis) -> None:
    """Deleted or edited rows answer neither yes nor no; the other versions are answered."""
    rows = Path("mlruns/artifacts") / NAME / store.first.run_id / "artifacts/dataset/train.jsonl"
    kept = rows.read_text()
    rows.write_text(kept.replace("row-1-4", "row-1-x"))
    found = precis.json("who-learned", "row-1-4")
    assert (found["learners"], len(found["unknown"])) == ([], 2)
    shutil.rmtree(rows.parent)
    assert len(precis.json("who-learned", "row-1-4")["unknown"]) == 2
    text = precis("who-learned", "row-2-4")
    assert f"{NAME} v2: row 'row-2-4'" in text
    assert f"not known: {NAME} v1" in text


def test_edited_tags_end_no_search(store: Store, precis: Precis) -> None:
    """Of a run, a challenger's or a version's, and of a version: told, and all others are searched."""
    client = store.client
    for run, step in ((store.second.run_id, "ingest"), (store.refused.run_id, "train")):
        client.set_tag(run, f"precis.step.{step}.{'7' * 32}", "x")
    found = precis.json("who-learned", "row-1-4")
    assert learners(found) == [(1, "id"), (3, "id")]
    titles = [text.partition(":")[0] for text in found["unknown"]]
    assert titles == [f"{NAME} v2", f"{NAME}, run {store.refused.run_id}"]
    assert "instead of a result of ingest" in found["unknown"][0]
    client.set_model_version_tag(NAME, "2", "precis.succeeds", "x")
    found = precis.json("who-learned", "row-1-4")
    assert [one["run_id"] for one in found["learners"]] == [store.first.run_id]
    assert found["unknown"][0].startswith(f"{NAME}, its versions")


def test_what_cannot_be_asked(store: Store, precis: Precis) -> None:
    """No id, both, no file, no text, no such model."""
    Path("empty.txt").write_text(" \n")
    Path("latin.txt").write_bytes(b"caf\xe9")
    for words in (["who-learned"], ["who-learned", "a", "--document", "b"]):
        assert "either a row's ID or a --document" in precis.refused(*words, status=2)
    for words, message in (
        (["--document", "none.txt"], "none.txt cannot be read"),
        (["--document", "empty.txt"], "empty.txt is empty"),
        (["--document", "latin.txt"], "is not UTF-8"),
        (["row", "--model", "sum"], "nearest: 'summ'"),
    ):
        assert message in precis.refused("who-learned", *words)


def test_data_are_inputs_of_the_mlflow_run(store: Store) -> None:
    """Name, digest, rows and place once, however often they are logged; MLflow's own loader finds them."""
    info = store.client.get_run(store.first.run_id).info
    run = mlflow_run.Run(store.client, info.run_id, info.experiment_id, resumed=True)
    for _ in range(2):
        dataset_inputs.log(run, NAME, store.first.dataset)
    inputs = store.client.get_run(run.id).inputs.dataset_inputs
    found = {one.tags[0].value: one.dataset for one in inputs}
    assert sorted(one.tags[0].value for one in inputs) == ["evaluation", "training"]
    training = found["training"]
    assert store.first.dataset.train_digest.startswith(training.digest)
    assert json.loads(training.profile) == {"num_rows": 20}
    loaded = Path(mlflow.data.get_source(training).load())
    assert '"row-1-4"' in loaded.read_text()


def test_a_folder_without_a_store(home: Path, precis: Precis) -> None:
    """Asking makes none."""
    assert "nothing was ever registered" in precis.refused("lineage", "summ")
    assert "nothing was ever trained" in precis.refused("who-learned", "row-1")
    assert not Path("mlruns").exists()
