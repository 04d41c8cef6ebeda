"""The main job decided by held-out loss, with documents too long for the prompt read in parts."""

from __future__ import annotations

import json
from typing import Any

import mlflow
import pytest
from stack import WEAKER, Stack

from tasks.contracts.records import Decision, from_json
from tasks.gate.recompute import recompute
from tasks.tracking import artifacts
from tasks.tracking.predictions_table import read_table

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]
BY_LOSS = {
    "gate__metric": "loss",
    "data__train_rows": 120,  # the loss shows at once what was learned
    "data__evaluation_rows": 24,
    "prompt__summarize": "map_reduce",
    "prompt__max_source_tokens": 210,  # a quarter of the demo's dialogues are longer
    # The texts show little yet.
    "gate__guardrail_margin": 1.0,
    "gate__length_ratio": "[0.0, 9.0]",
    "gate__max_copied_rise": 1.0,
    "gate__max_empty_share": 1.0,
    "gate__max_repeating_rise": 1.0,
    "gate__max_same_share": 1.0,
    "gate__max_unfinished_rise": 1.0,
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack(tmp_path_factory.mktemp("loss"))


@pytest.fixture(scope="module")
def first(stack: Stack) -> dict[str, Any]:
    """The first challenger, against the untuned base."""
    return stack.run(**BY_LOSS)


@pytest.fixture(scope="module")
def weaker(stack: Stack, first: dict[str, Any]) -> dict[str, Any]:
    """A challenger trained on far less, against that champion."""
    return stack.run(**BY_LOSS | {k.replace(".", "__"): v for k, v in WEAKER.items()})


@pytest.fixture
def client(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Any:
    uri = f"sqlite:///{stack.folder / 'mlruns/mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient()


def test_a_lower_loss_is_promoted_and_a_higher_one_refused(
    first: dict[str, Any], weaker: dict[str, Any], client: Any
) -> None:
    """The right way round, against the base and against the champion; the tokenizer is on record."""
    assert (first["verdict"], first["version"]) == ("PROMOTE", 1)
    won, lost = first["metrics"]["loss"], weaker["metrics"]["loss"]
    assert won["challenger"] < won["base"]
    assert won["gain"] == pytest.approx(won["base"] - won["challenger"])
    assert won["lead3"] is None
    assert (weaker["verdict"], weaker["champion_version"]) == ("REJECT", 1)
    assert lost["challenger"] > lost["champion"] == won["challenger"]
    assert lost["high"] < 0
    assert weaker["reasons"][0].startswith("no gain: loss rose by ")
    version = client.get_model_version("demo", "1")
    assert version.tags["precis.loss"] == f"{won['challenger']:.4f}"
    assert version.tags["precis.tokenizer_digest"]
    assert "(lower is better)" in version.description


def test_both_decisions_are_recomputed_from_what_is_stored(
    first: dict[str, Any], weaker: dict[str, Any], client: Any
) -> None:
    """From tables that hold each row's loss; lead-3's has none."""
    for outcome in (first, weaker):
        folder = artifacts.fetch(f"runs:/{outcome['mlflow_run_id']}/gate")
        stored = from_json(Decision, (folder / "decision.json").read_bytes())
        assert recompute(folder) == stored
        assert all("loss" in row.scores for row in read_table(folder / "challenger.json"))
        assert not any("loss" in row.scores for row in read_table(folder / "lead3.json"))


def test_the_served_model_reads_long_documents_in_parts_too(
    first: dict[str, Any], client: Any
) -> None:
    """The champion's texts are those that were judged, of documents that fit and that do not."""
    folder = artifacts.fetch(f"runs:/{first['mlflow_run_id']}/gate")
    rows = read_table(folder / "challenger.json")
    assert {row.parts > 1 for row in rows} == {True, False}
    model = mlflow.pyfunc.load_model("models:/demo@champion")
    assert list(model.predict([row.document for row in rows])) == [row.text for row in rows]


def test_what_did_not_fit_is_said(first: dict[str, Any], client: Any) -> None:
    """As JSON, in the run's metrics and in its data report."""
    cuts = {(cut["what"], cut["done"]): cut for cut in first["cuts"]}
    parted = cuts["evaluation documents", "summarized in parts"]
    cut = cuts["training documents", "cut"]
    run = client.get_run(first["mlflow_run_id"])
    assert 0 < parted["count"] == run.data.metrics["challenger/split_documents"]
    assert 0 < cut["count"] < cut["of"] == 120
    folder = artifacts.fetch(f"runs:/{first['mlflow_run_id']}/dataset")
    report = json.loads((folder / "report.json").read_text())
    assert report["train"]["truncated_prompts"]["count"] == cut["count"]
    assert report["evaluation"]["prompts_in_parts"]["count"] == parted["count"]
