"""Sealed feedback end to end: of a refused challenger no reader meets a deciding row, nor a number of one."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from stack import SEALED, UNREACHABLE, Stack, stack_with_judged
from terminal import Terminal

from tasks.contracts.records import Decision, Prediction, ShownDecision, from_json
from tasks.gate.recompute import main, recompute
from tasks.tracking.predictions_table import read_table

pytestmark = pytest.mark.timeout(900)

SLICED = SEALED | {"gate__slices": "[source, length]"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return stack_with_judged(tmp_path_factory.mktemp("sealed"), tmp_path_factory)


@pytest.fixture(scope="module")
def refused(stack: Stack) -> dict[str, Any]:
    """A run that no challenger passes, whose log is kept."""
    changes = {key.replace("__", "."): value for key, value in SLICED.items()}
    return stack.finish(stack.start(changes | UNREACHABLE))


@pytest.fixture(scope="module")
def client(stack: Stack, refused: dict[str, Any]) -> Iterator[Any]:
    uri = f"sqlite:///{stack.folder / 'mlruns/mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    yield mlflow.MlflowClient(uri)
    mlflow.set_tracking_uri(None)


def folder_of(stack: Stack, outcome: dict[str, Any]) -> Path:
    return next((stack.folder / "mlruns/artifacts").glob(f"*/{outcome['mlflow_run_id']}/artifacts"))


def deciding(folder: Path) -> tuple[list[Prediction], Decision]:
    """The rows that decided, and the decision."""
    shown = {row.id for row in read_table(folder / "gate/challenger.json")}
    rows = [r for r in read_table(folder / "sealed/gate/challenger.json") if r.id not in shown]
    return rows, from_json(Decision, (folder / "sealed/gate/decision.json").read_bytes())


def secrets(rows: list[Prediction], decision: Decision) -> set[str]:
    """What no reader may meet: ids, outputs and scores of deciding rows, and what was measured on them."""
    values = [one.value for one in decision.guardrails]
    for found in decision.metrics.values():
        values += [found.base, found.lead3, found.challenger, found.gain, found.low, found.high]
    for one in decision.slices:
        values += [one.gain, one.low, one.high]
    told = [abs(v) for v in values if v is not None and 0.001 < abs(v) != 1]
    # As they are printed, and as they are stored.
    numbers = {f"{v:.4f}" for v in told} | {repr(v)[:9] for v in told}
    numbers |= {repr(score) for row in rows for score in row.scores.values() if 0.01 < score < 1}
    ids = {json.dumps(row.id) for row in rows}
    return ids | numbers | {row.text for row in rows if len(row.text) > 30}


def holds(text: str, secret: str) -> bool:
    """Whether the text holds the secret; a number of four digits as a whole, since seconds begin so too."""
    if re.fullmatch(r"0\.\d{4}", secret):
        return re.search(rf"(?<![\d.]){re.escape(secret)}(?!\d)", text) is not None
    return secret in text


def places(stack: Stack, outcome: dict[str, Any], client: Any) -> Iterator[tuple[str, str]]:
    """Every place that a reader of the run meets, but for the folder `sealed` and the data read in."""
    yield "standard output", json.dumps(outcome)
    yield "log", (stack.folder / "err.log").read_text()
    run = client.get_run(outcome["mlflow_run_id"])
    yield "MLflow run", repr((run.data.tags, run.data.metrics, run.data.params))
    yield "experiment", repr(client.get_experiment_by_name("demo").tags)
    yield "history", json.dumps(stack.ask("history", "demo")[-1])
    folder = folder_of(stack, outcome)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).parts[0] not in {"sealed", "dataset"}:
            yield str(path.relative_to(folder)), path.read_bytes().decode(errors="replace")
    prefect = sqlite3.connect(stack.folder / "prefect/prefect.db")
    for table in ("artifact", "flow_run", "flow_run_state", "log", "events"):
        for row in prefect.execute(f"SELECT * FROM {table}"):
            if outcome["prefect_flow_run_id"] in repr(row) or table == "artifact":
                yield f"Prefect's {table}", repr(row)


def test_no_reader_meets_a_deciding_row_or_number(
    stack: Stack, refused: dict[str, Any], client: Any
) -> None:
    """Output, log, tags, metrics, artifacts, Prefect's database and history, searched for each of them."""
    folder = folder_of(stack, refused)
    rows, decision = deciding(folder)
    assert refused["verdict"] == decision.verdict == "REJECT"
    assert len(rows) == refused["rows"]["deciding"] == decision.rows > 20
    hidden = secrets(rows, decision)
    assert len(hidden) > 100
    opened = json.dumps(refused["open_part"]) + (folder / "gate/challenger.json").read_text()
    opened += "".join((folder / f"gate/{who}.json").read_text() for who in ("base", "lead3"))
    own = {secret for secret in hidden if secret not in opened}
    assert len(own) > 80
    read = 0
    for place, text in places(stack, refused, client):
        read += 1
        assert not [secret for secret in own if holds(text, secret)], place
    assert read > 15
    assert refused["metrics"] == {}
    assert refused["reasons"] == ["surely no gain over 0.99"]


def test_the_open_part_is_shown_with_its_name(stack: Stack, refused: dict[str, Any]) -> None:
    """Its numbers stand in the JSON and the report, which says of how many rows the verdict is."""
    opened = refused["open_part"]
    assert opened["rows"] + refused["rows"]["deciding"] == refused["rows"]["all"] == 50
    page = (folder_of(stack, refused) / "report.html").read_text()
    assert f"{opened['metrics']['rougeL']['challenger']:.4f}" in page
    assert re.search(r"open part, \d+ of 50 rows; the verdict is of the other \d+", page)


def test_a_sealed_decision_recomputes_without_a_number(
    stack: Stack, refused: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit; numbers only for who asks, and then with what that costs."""
    folder = folder_of(stack, refused) / "sealed/gate"
    stored = from_json(Decision, (folder / "decision.json").read_bytes())
    assert recompute(folder) == stored
    assert (stored.slices[0].by, stored.slices[0].value) == ("source", "evaluation.jsonl")
    assert (folder / "labels.json").read_bytes() == (
        folder.parents[1] / "dataset/labels.json"
    ).read_bytes()
    assert main([str(folder)]) == 0
    assert not re.search(r"\d", capsys.readouterr().out)
    assert main([str(folder), "--show-deciding"]) == 0
    printed = capsys.readouterr().out
    assert f"{stored.metrics['rougeL'].challenger:.4f}" in printed
    assert "used these evaluation rows up" in printed
    assert "uses the evaluation set up" in (folder.parent / "README.txt").read_text()


@pytest.mark.full
def test_who_refuses_a_winner_has_met_no_deciding_row(
    stack: Stack, refused: dict[str, Any], client: Any
) -> None:
    """Asked at a terminal, with the open rows as blind pairs: what is seen then, and what is stored."""
    changes = {key.replace("__", "."): value for key, value in SEALED.items()}
    words = stack.words(changes | {"gate.approval": "required"})
    terminal = Terminal(words, stack.folder, stack.environment())
    terminal.wait_for("blind pairs (A, B or =)")
    (asks,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id],
                                 "attributes.status = 'SCHEDULED'")  # fmt: skip
    asking = {"mlflow_run_id": asks.info.run_id}
    rows, decision = deciding(folder_of(stack, asking))
    terminal.type("", "refuse", "Ann Lee", "too terse")
    outcome = json.loads(terminal.finish())
    assert (outcome["verdict"], outcome["version"], outcome["metrics"]) == (
        "NOT_APPROVED",
        None,
        {},
    )
    assert (outcome["approval"]["by"], decision.verdict) == ("Ann Lee", "PROMOTE")
    assert outcome["mlflow_run_id"] == asking["mlflow_run_id"]
    folder = folder_of(stack, outcome)
    page = (folder / "approval/pairs.md").read_text()
    assert 0 < page.count("## Pair ") <= outcome["rows"]["all"] - outcome["rows"]["deciding"]
    opened = json.dumps(outcome["open_part"]) + (folder / "gate/challenger.json").read_text()
    opened += "".join((folder / f"gate/{who}.json").read_text() for who in ("base", "lead3"))
    own = {secret for secret in secrets(rows, decision) if secret not in opened}
    assert len(own) > 80
    for place, text in [("terminal", terminal.text), *places(stack, outcome, client)]:
        assert not [secret for secret in own if holds(text, secret)], place
    assert stack.ask("history", "demo")[-1]["approved_by"] == "Ann Lee"


def test_after_the_promotion_its_numbers_are_told(
    stack: Stack, refused: dict[str, Any], client: Any
) -> None:
    """The same challenger by a gate that it passes: JSON, metrics, version and history hold them."""
    promoted = stack.run(**SLICED)
    assert (promoted["verdict"], promoted["version"]) == ("PROMOTE", 1)
    found = promoted["metrics"]["rougeL"]
    metrics = client.get_run(promoted["mlflow_run_id"]).data.metrics
    assert metrics["challenger/rougeL"] == pytest.approx(found["challenger"])
    assert metrics["gate/gain"] == pytest.approx(found["gain"])
    version = client.get_model_version("demo", "1")
    assert version.tags["precis.rougeL"] == f"{found['challenger']:.4f}"
    assert f"{found['gain']:+.3f}" in version.description
    assert stack.ask("history", "demo")[-1]["gain"] == found["gain"]
    path = folder_of(stack, promoted) / "gate/shown.json"
    assert from_json(ShownDecision, path.read_bytes()).metrics["rougeL"].gain == found["gain"]
