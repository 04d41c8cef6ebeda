"""The short form of `make faults`: kills of whole runs at seeded moments, and a checker that sees faults."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import paths  # noqa: F401 - first: the others are found by it

import home  # isort: skip
import mlflow  # isort: skip
import tiny_run  # isort: skip
import trials  # isort: skip
from checker import Checker  # isort: skip

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]
SEED = 5  # all processes of a run are killed between the move of the alias and the tag that ends it


@pytest.fixture(scope="module")
def store() -> Path:
    return tiny_run.champion_store()


def test_a_trial_of_the_embedded_stack(store: Path, tmp_path: Path) -> None:
    """The fault is met; what precis promises holds, and the retry promotes."""
    trial = trials.run_trial("embedded", SEED, store, tmp_path, "all at once")
    print(trial.line())
    assert not trial.landed.startswith("not met")
    assert trial.violations == ()


@pytest.fixture
def place(store: Path, tmp_path: Path) -> Iterator[home.Home]:
    with home.copied(store, tmp_path / "place") as made:
        yield made


def _found(place: home.Home) -> list[str]:
    """What the checker finds in a folder where nothing has run, without the commands of precis."""
    checker = Checker(place, home.Registry(frozenset(), frozenset(), None))
    checker.after_the_fault()
    checker._chain(checker.versions())
    checker._left_behind(aged=True)
    return checker.violations


def test_the_checker_finds_nothing_in_a_sound_store(place: home.Home) -> None:
    """Its own computation agrees with the gate's."""
    assert _found(place) == []


def test_the_checker_sees_what_it_is_for(place: home.Home) -> None:
    """Each of these is found: a changed file, another opponent, scores that do not follow, what was left."""
    client = mlflow.MlflowClient(place.uri)
    version = client.get_model_version(tiny_run.NAME, "1")
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    folder = Path(logged.artifact_location.removeprefix("file://"))
    (folder / "MLmodel").write_text("another")
    client.set_model_version_tag(tiny_run.NAME, "1", "precis.succeeds", "7")
    run = client.get_run(version.tags["precis.run_id"])
    gate = Path(run.info.artifact_uri.removeprefix("file://")) / "sealed/gate"
    shutil.copy(gate / "opponent.json", gate / "challenger.json")
    client.create_logged_model(run.info.experiment_id, "left")
    client.create_run(run.info.experiment_id)
    served = place.store / "work/served/m-left"
    served.mkdir(parents=True)
    found = " | ".join(_found(place))
    for expected in (
        "v1: MLmodel differs",
        "v1 was judged against vNone, and succeeds v7",
        "v1: computed again, its gain may be",
        "v1 succeeds v7; the champion of its time was v0",
        "logged models are not READY",
        "MLflow runs say RUNNING",
        "served/m-left",
    ):
        assert expected in found, found
