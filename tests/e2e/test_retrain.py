"""The main job, end to end: real Prefect, real MLflow, a real small model that really learns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import once
import pytest
from stack import WEAKER, Stack

from flows.cli import reference
from tasks.contracts.records import Decision, from_json
from tasks.gate.recompute import recompute
from tasks.tracking import artifacts
from tasks.tracking.predictions_table import read_table

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack(once.made_once(tmp_path_factory, "main", lambda _: None))


@pytest.fixture(scope="module")
def first(stack: Stack) -> dict[str, Any]:
    """The first challenger, against the untuned base."""
    return stack.run_once("first")


@pytest.fixture(scope="module")
def again(stack: Stack, first: dict[str, Any]) -> dict[str, Any]:
    """The same recipe once more, nothing changed."""
    return stack.run_once("again", real=True)


@pytest.fixture(scope="module")
def weaker(stack: Stack, again: dict[str, Any]) -> dict[str, Any]:
    """A challenger trained on far less."""
    return stack.run_once("weaker", **{k.replace(".", "__"): v for k, v in WEAKER.items()})


@pytest.fixture
def client(stack: Stack, home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An MLflow client on the stack's store."""
    uri = stack.env.get("MLFLOW_TRACKING_URI", f"sqlite:///{stack.folder / 'mlruns/mlflow.db'}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient()


def test_a_better_challenger_is_registered(first: dict[str, Any]) -> None:
    """It beats the untuned base beyond noise and becomes version 1."""
    assert (first["verdict"], first["version"], first["champion_version"]) == ("PROMOTE", 1, None)
    rouge = first["metrics"]["rougeL"]
    assert rouge["low"] > 0
    assert rouge["challenger"] - rouge["base"] == pytest.approx(rouge["gain"])
    assert rouge["champion"] is None
    assert first["skipped"] == []


def test_each_step_was_estimated_and_measured(first: dict[str, Any], again: dict[str, Any]) -> None:
    """Time of each, memory of each process; of what was recalled nothing is claimed."""
    costs = {one["step"]: (one["estimated"], one["measured"]) for one in first["costs"]}
    processes = {"ingest", "train", "merge", "evaluate challenger", "evaluate base", "gate"}
    assert set(costs) == processes | {"drift check"}
    for step, both in costs.items():
        assert all(cost["seconds"] > 0 for cost in both), step
        assert all((cost["memory_gib"] is None) == (step not in processes) for cost in both), step
    assert [one["step"] for one in again["costs"]] == ["gate"]


def test_its_object_is_what_the_documentation_says(first: dict[str, Any]) -> None:
    """Every key of `--json` is in docs/cli.md, and no other."""
    section = reference.JSON.split("\n`precis run`")[1].split("\n`precis ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert set(first) == {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


def test_an_unchanged_rerun_does_nothing_again_and_says_so(
    first: dict[str, Any], again: dict[str, Any], stack: Stack
) -> None:
    """Training and evaluation are skipped; the champion against itself is never promoted."""
    assert (again["verdict"], again["reasons"]) == ("REJECT", ["same model"])
    assert again["champion_version"] == 1
    assert again["model_digest"] == first["model_digest"]
    assert {
        "ingest",
        "train",
        "merge",
        "evaluate.challenger",
        "evaluate.champion",
        "evaluate.base",
    } <= set(again["skipped"])


def test_a_weaker_challenger_is_refused_and_makes_no_version(
    weaker: dict[str, Any], client: Any
) -> None:
    """The refusal says why; the registry is as it was."""
    assert weaker["verdict"] == "REJECT"
    assert weaker["version"] is None
    assert weaker["metrics"]["rougeL"]["gain"] < 0
    assert "no gain" in weaker["reasons"][0]
    assert [int(v.version) for v in client.search_model_versions("name='demo'")] == [1]
    aliases = client.get_registered_model("demo").aliases
    assert {alias: int(number) for alias, number in aliases.items()} == {"champion": 1}


def test_champion_and_history_tell_the_story(
    stack: Stack, first: dict[str, Any], weaker: dict[str, Any]
) -> None:
    """Who is champion and why; promotion and refusals in order, looks counted."""
    champion = stack.ask("champion", "demo")
    assert champion["version"] == 1
    assert champion["model_digest"] == first["model_digest"]
    assert champion["promoted_by"]["mlflow_run_id"] == first["mlflow_run_id"]
    history = stack.ask("history", "demo")
    assert [(r["kind"], r["version"], r["looks"]) for r in history] == [
        ("promotion", 1, 1),
        ("refusal", None, 1),
        ("refusal", None, 2),
    ]
    assert {r["schema_version"] for r in history} == {1}


@pytest.mark.parametrize("which", ["first", "again", "weaker"])
def test_every_decision_can_be_recomputed_from_what_is_stored(
    which: str, request: pytest.FixtureRequest, client: Any
) -> None:
    """The same numbers to the last digit, from the run's artifacts alone."""
    outcome = request.getfixturevalue(which)
    folder = artifacts.fetch(f"runs:/{outcome['mlflow_run_id']}/gate")
    stored = from_json(Decision, (folder / "decision.json").read_bytes())
    assert recompute(folder) == stored
    assert stored.verdict == outcome["verdict"]


CLEAN = """
import importlib.util, json, sys
for name in ("flows", "tasks"):
    assert importlib.util.find_spec(name) is None, name
import mlflow
model = mlflow.pyfunc.load_model("models:/demo@champion")
json.dump(list(model.predict(json.load(open("documents.json")))), open("texts.json", "w"))
"""


def test_the_champion_serves_what_was_judged_without_this_project(
    first: dict[str, Any], client: Any, tmp_path: Path
) -> None:
    """A process that cannot import flows or tasks loads it and gives the stored summaries back."""
    gate = artifacts.fetch(f"runs:/{first['mlflow_run_id']}/gate")
    stored = read_table(gate / "challenger.json")
    (tmp_path / "documents.json").write_text(json.dumps([p.document for p in stored]))
    site = next(p for p in sys.path if p.endswith("site-packages"))
    # Through PYTHONPATH site-packages is a plain folder: the .pth file that makes the project
    # importable is not read.
    done = subprocess.run(
        [sys._base_executable, "-c", CLEAN],  # type: ignore[attr-defined]
        cwd=tmp_path,
        env={
            "PYTHONPATH": site,
            "PATH": "/usr/bin:/bin",
            "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "texts.json").read_text()) == [p.text for p in stored]


def test_a_run_holds_what_it_was_made_of(first: dict[str, Any], client: Any) -> None:
    """Recipe, manifest, dataset, adapter, predictions, decision and report, linked with Prefect."""
    run = client.get_run(first["mlflow_run_id"])
    names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {
        "recipe.yaml",
        "manifest.yaml",
        "dataset",
        "adapter",
        "predictions",
        "gate",
        "report.html",
    } <= names
    assert run.info.status == "FINISHED"
    assert run.data.tags["precis.flow_run_id"] == first["prefect_flow_run_id"]
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert len(losses) > 3
    assert losses[0].value > losses[-1].value
    mlflow.set_experiment("demo")  # load_table looks in the active one only
    table = mlflow.load_table("predictions/challenger.json", run_ids=[run.info.run_id])
    assert len(table) == 50
    version = client.get_model_version("demo", "1")
    assert version.description.startswith("PROMOTED demo")
    assert version.run_id == run.info.run_id
