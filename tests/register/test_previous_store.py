"""A store of the version before: its champion stands, its history is whole, its results are found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tasks.contracts.records import DatasetRef, Scores, StepCost
from tasks.costs import step_costs
from tasks.register import claims
from tasks.register.task import history_of, trained_by
from tasks.tracking import connection, history, mlflow_run, step_cache

# The tags of two demo runs (a promotion, then a refusal) and of the version that the first one
# registered, as the code of 2026-11-28 wrote them (commit b98b9c9).
PREVIOUS = json.loads((Path(__file__).parent / "previous_store.json").read_text())
NAME = "demo"


@pytest.fixture
def store(home: Path) -> Iterator[Any]:
    """An MLflow store that holds these tags, as the version before left it."""
    client = connection.connect()
    experiment = client.create_experiment(NAME)
    for tags in PREVIOUS["runs"]:
        client.set_terminated(client.create_run(experiment, tags=tags).info.run_id)
    client.create_registered_model(NAME)
    for version in PREVIOUS["versions"]:
        model = client.create_logged_model(experiment)
        created = client.create_model_version(
            NAME,
            f"models:/{model.model_id}",
            tags=version["tags"],
            description=version["description"],
            model_id=model.model_id,
        )
        client.set_registered_model_alias(NAME, claims.ALIAS, created.version)
    yield client
    mlflow.set_tracking_uri(None)


def test_its_champion_stands(store: Any) -> None:
    """With the digest, the run and the tokenizer that were recorded."""
    champion = claims.find_champion(store, NAME)
    assert champion is not None
    tags = PREVIOUS["versions"][0]["tags"]
    assert (champion.number, champion.succeeds, champion.finished) == (1, claims.NOBODY, True)
    assert champion.digest == tags["precis.model_digest"]
    assert champion.run_id == trained_by(store, NAME, champion) == tags["precis.run_id"]
    assert champion.tokenizer == tags["precis.tokenizer_digest"]


def test_its_champion_is_succeeded(store: Any) -> None:
    """By a claim of this version, which does not disturb the history."""
    before = history_of(store, NAME)
    champion = claims.find_champion(store, NAME)
    experiment = store.get_experiment_by_name(NAME).experiment_id
    run_id = store.create_run(experiment).info.run_id
    model = store.create_logged_model(experiment, source_run_id=run_id)
    won = claims.succeed(
        store,
        NAME,
        champion,
        source=f"models:/{model.model_id}",
        tags={claims.DIGEST: "d", claims.RUN_ID: run_id},
        description="PROMOTED",
    )
    assert won is not None
    assert (won.number, won.succeeds) == (2, 1)
    assert history_of(store, NAME)[:-1] == before


def test_its_history_is_whole(store: Any) -> None:
    """Every entry, in order, with the version that took effect and the numbers of each."""
    first, second = history_of(store, NAME)
    assert (first.kind, first.version, first.looks) == ("promotion", 1, 1)
    assert (second.kind, second.verdict, second.version) == ("refusal", "REJECT", None)
    assert first.line() == (
        "2026-11-28T10:02:25.414+00:00  promoted v1  rougeL +0.5300 [+0.5115, +0.5477] "
        "against the untuned base, look 1"
    )
    assert second.line() == (
        "2026-11-28T10:04:04.853+00:00  refused (REJECT)  rougeL -0.5349 [-0.5599, -0.5099] "
        "against v1, look 2"
    )
    stored = [json.loads(tags["precis.history"]) for tags in PREVIOUS["runs"]]
    assert [list(record.reasons) for record in (first, second)] == [r["reasons"] for r in stored]


def test_its_looks_are_counted(store: Any) -> None:
    """The next challenger on the same evaluation rows is the third, and is not forgotten with its run."""
    first = PREVIOUS["runs"][0]
    for model, looks in (("another", 3), (first["precis.look.model"], 3)):
        with mlflow_run.run_for(NAME, f"flow run of {model}", {}) as run:
            rows = first["precis.look.rows"]
            texts = ["a document"]
            assert history.count_look(run, model, "rougeL", "base", rows, texts) == looks
            store.set_terminated(run.id)
        store.delete_run(run.id)


def test_its_steps_results_and_forecast_are_read(store: Any) -> None:
    """What a dataset held, what was scored, and what each step was estimated to take."""
    tags = PREVIOUS["runs"][1]
    (dataset,) = step_cache.results(tags, "ingest", DatasetRef)
    assert (dataset.train_rows, dataset.evaluation_rows) == (64, 200)
    scores = step_cache.results(tags, "evaluate", Scores)
    assert {one.rows for one in scores} == {200}
    assert len(scores) == 4
    steps = step_costs.compare(tags, {"cost/train/seconds": 7.0})
    train = next(step for step in steps if step.step == "train")
    assert isinstance(train, StepCost)
    assert train.measured.seconds == 7.0


def test_a_result_of_its_is_taken_under_its_key(store: Any) -> None:
    """A run of this version finds what the version before recorded, if its files are intact."""
    (name, value) = next(
        item for item in PREVIOUS["runs"][0].items() if item[0].startswith("precis.step.train.")
    )
    key = name.rpartition(".")[2]
    with mlflow_run.run_for(NAME, "flow run", {}) as run:
        recalled = step_cache.recall(run, "train", key, dict, lambda _: True)
        assert recalled == json.loads(value)
        assert run.skipped == ["train"]
