"""Sealed feedback end to end: of a refused challenger no reader meets a deciding row, nor a number of one.

Over 250 lines: all searches share the list of places that a reader meets.
"""

from __future__ import annotations

import html
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
import warm
from stack import SEALED, UNREACHABLE, WEAKER, Stack, stack_with_judged
from terminal import Terminal
from tiny_encoders import LABELS, encoder

from tasks.contracts.records import Decision, Prediction, ShownDecision, from_json
from tasks.gate.recompute import main, recompute
from tasks.tracking.predictions_table import read_table

pytestmark = pytest.mark.timeout(900)

FOUR_DIGITS = re.compile(r"(?<![\d.])0\.\d{4}(?!\d)")
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
    yield client_of(stack)
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def judged_by_models(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Stack, dict[str, Any], dict[str, Any]]:
    """With an NLI and a BERTScore model: a promotion, then a weaker challenger that is not promoted."""
    folder = tmp_path_factory.mktemp("sealed-by-models")
    stack = stack_with_judged(folder, tmp_path_factory)
    models = {
        "gate.nli_model": encoder(folder / "nli", labels=LABELS),
        "gate.bertscore_model": encoder(folder / "bertscore"),
        "gate.bertscore_layer": 3,
        "gate.max_nli_drop": 0.9,  # of a random model: a veto that is looked at and never broken
        "gate.max_bertscore_drop": 0.9,
    }
    changes = {key.replace("__", "."): value for key, value in SLICED.items()} | models
    promoted = stack.finish(stack.start(changes))
    return stack, promoted, stack.finish(stack.start(changes | WEAKER))


def client_of(stack: Stack) -> Any:
    uri = f"sqlite:///{stack.folder / 'mlruns/mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


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
    return {row.id for row in rows} | numbers | {row.text for row in rows if len(row.text) > 30}


def found_in(text: str, hidden: set[str]) -> set[str]:
    """Which of them the text holds, as it is or as HTML.

    A number of four digits as a whole, since seconds begin so too.
    """
    found = set()
    for one in {text, html.unescape(text)}:
        numbers = set(FOUR_DIGITS.findall(one))
        found |= {s for s in hidden if s in numbers or (s in one and not FOUR_DIGITS.fullmatch(s))}
    return found


def opened_by(folder: Path, outcome: dict[str, Any]) -> str:
    """What of a run may be read by everybody: its open part."""
    tables = [f"gate/{who}.json" for who in ("challenger", "opponent", "base", "lead3")]
    return json.dumps(outcome["open_part"]) + "".join((folder / t).read_text() for t in tables)


COMMANDS = ("history demo", "prune demo --keep 1", "page demo --out page.html")
OF_VERSIONS = ("verify demo --all --rows 0", "lineage demo", "lineage demo --json", "champion demo")


def told_by_commands(stack: Stack, commands: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What commands that read the registry print, and the page that one of them writes."""
    for command in commands:
        done = warm.warm_precis()(command.split(), stack.folder, stack.environment())
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 20, command
        yield f"precis {command}", done.stdout + done.stderr
    yield "page.html", (stack.folder / "page.html").read_text()


def places(
    stack: Stack, outcome: dict[str, Any], client: Any, commands: Sequence[str] = COMMANDS
) -> Iterator[tuple[str, str]]:
    """Every place that a reader of the run meets, but for the folder `sealed` and the data read in.

    Commands come first: what they write stands in the others.
    """
    yield from told_by_commands(stack, commands)
    yield "standard output", json.dumps(outcome)
    yield "log", (stack.folder / "err.log").read_text()
    run = client.get_run(outcome["mlflow_run_id"])
    yield "MLflow run", repr((run.data.tags, run.data.metrics, run.data.params))
    experiment = client.get_experiment_by_name("demo")
    yield "experiment", repr(experiment.tags)
    yield "registered models", repr(client.search_registered_models())
    yield "versions", repr([(v.tags, v.description) for v in client.search_model_versions("")])
    logged = client.search_logged_models([experiment.experiment_id])
    yield "logged models", repr([(m.tags, m.metrics, m.params) for m in logged])
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
    own = {secret for secret in hidden if secret not in opened_by(folder, refused)}
    assert len(own) > 80
    read = 0
    for place, text in places(stack, refused, client):
        read += 1
        assert not found_in(text, own), place
    assert read > 20
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
def test_of_an_inconclusive_challenger_no_number_is_met_either(
    stack: Stack, refused: dict[str, Any], client: Any
) -> None:
    """Asked for a gain between what was measured and its lower bound, which noise could decide."""
    before = deciding(folder_of(stack, refused))[1].metrics["rougeL"]
    asked = {"gate.min_delta": round((before.low + before.gain) / 2, 3)}
    changes = {key.replace("__", "."): value for key, value in SLICED.items()}
    outcome = stack.finish(stack.start(changes | asked))
    folder = folder_of(stack, outcome)
    rows, decision = deciding(folder)
    assert outcome["verdict"] == decision.verdict == "INCONCLUSIVE"
    assert outcome["metrics"] == {}
    opened = opened_by(folder, outcome)
    own = {secret for secret in secrets(rows, decision) if secret not in opened}
    assert len(own) > 80
    for place, text in places(stack, outcome, client):
        assert not found_in(text, own), place


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
    opened = opened_by(folder, outcome)
    own = {secret for secret in secrets(rows, decision) if secret not in opened}
    assert len(own) > 80
    for place, text in [("terminal", terminal.text), *places(stack, outcome, client)]:
        assert not found_in(text, own), place
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


@pytest.mark.full
def test_beside_a_champion_a_refused_challenger_stays_sealed(
    judged_by_models: tuple[Stack, dict[str, Any], dict[str, Any]],
) -> None:
    """Judged by NLI and BERTScore too: the champion's numbers are told, the weaker challenger's are not."""
    stack, promoted, weaker = judged_by_models
    assert (promoted["verdict"], promoted["version"]) == ("PROMOTE", 1)
    assert weaker["verdict"] in ("REJECT", "INCONCLUSIVE")
    assert weaker["metrics"] == {}
    client, folder = client_of(stack), folder_of(stack, weaker)
    rows, decision = deciding(folder)
    assert {"nli", "bertscore"} <= set(decision.metrics)
    assert {"nli", "bertscore"} <= {one.name for one in decision.guardrails}
    assert all({"nli", "bertscore"} <= set(row.scores) for row in rows)
    told = opened_by(folder, weaker) + json.dumps(promoted)
    champions = from_json(
        Decision, (folder_of(stack, promoted) / "sealed/gate/decision.json").read_bytes()
    )
    hidden = secrets(rows, decision) - secrets([], champions)  # base and lead-3 are in both
    own = {secret for secret in hidden if secret not in told}
    assert len(own) > 80
    told_of_champion = {f"{abs(promoted['metrics']['rougeL']['gain']):.4f}"}
    shows_champion = set()
    for place, text in places(stack, weaker, client, (*COMMANDS, *OF_VERSIONS)):
        assert not found_in(text, own), place
        shows_champion |= {place} if found_in(text, told_of_champion) else set()
    assert {"precis history demo", "page.html"} <= shows_champion  # what is there is found


@pytest.mark.full
def test_what_models_judged_is_verified_and_computed_again(
    judged_by_models: tuple[Stack, dict[str, Any], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both decisions bit for bit without the models; version and refusal are as judged."""
    stack, *outcomes = judged_by_models
    for outcome in outcomes:
        folder = folder_of(stack, outcome) / "sealed/gate"
        assert recompute(folder) == from_json(Decision, (folder / "decision.json").read_bytes())
        assert main([str(folder)]) == 0
        assert not re.search(r"\d", capsys.readouterr().out)
    found = stack.ask("verify", "demo", "--all", "--rows", "0")
    assert found["as_judged"], found
    assert any("computed again" in text for text in found["versions"]["1"]["checked"])
    assert "2 entries without a version in the history" in found["model"]["checked"]
