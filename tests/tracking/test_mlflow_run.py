"""What runs recorded, found again: in few requests, and only where it is intact."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.tracking import artifacts, connection, mlflow_run, step_cache

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """What a step came to."""

    value: int


@contextmanager
def run(number: int) -> Iterator[mlflow_run.Run]:
    """One run of model `m`, in the store of the folder."""
    with mlflow_run.run_for("m", f"flow-run-{number}", {}) as found:
        yield found


def test_all_steps_of_a_run_are_found_by_one_search(home: Path) -> None:
    """A run that did one step has the results of the others on record: they are not searched for."""
    with run(1) as first:
        for step in range(5):
            step_cache.record(first, f"step{step}", f"key{step}", Result(step))
    with run(2) as second:
        asked = counted(second)
        found = [
            step_cache.recall(second, f"step{n}", f"key{n}", Result, lambda _: True)
            for n in range(5)
        ]
        assert found == [Result(n) for n in range(5)]
        assert len(asked) == 1
        assert step_cache.recall(second, "step0", "another key", Result, lambda _: True) is None


def test_pending_tags_go_with_the_next_write(home: Path) -> None:
    """Without a request of their own; what is pending at the end is written then."""
    with run(1) as first:
        tags = lambda: first.client.get_run(first.id).data.tags  # noqa: E731
        first.add_tags_to_next_write({"a": "1", "b": "1"})
        assert "a" not in tags()
        first.write(tags={"b": "2"})
        assert (tags()["a"], tags()["b"]) == ("1", "2")
        assert first.pending_tags == {}
        first.add_tags_to_next_write({"c": "3"})
    assert tags()["c"] == "3"
    assert first.skipped == []


def test_a_broken_result_gives_way_to_an_older_one(home: Path) -> None:
    """Each result on record is looked at, newest first, each once, until one is intact."""
    for number in (1, 2, 3):
        with run(number) as each:
            step_cache.record(each, "step", "key", Result(number))
    looked = []

    def intact(result: Result) -> bool:
        looked.append(result.value)
        return result.value == 1

    with run(4) as last:
        assert step_cache.recall(last, "step", "key", Result, intact) == Result(1)
    assert looked == [3, 2, 1]


def test_a_run_that_is_resumed_knows_it(home: Path) -> None:
    """A second try of one flow run goes on in its MLflow run."""
    with run(1) as first:
        assert not first.resumed
    with run(1) as again:
        assert again.resumed
        assert again.id == first.id


def counted(found: mlflow_run.Run) -> list[Any]:
    """The searches that a run makes from now on."""
    asked: list[Any] = []
    search = found.client.search_runs

    def searching(*words: Any, **named: Any) -> Any:
        asked.append(words)
        return search(*words, **named)

    found.client.search_runs = searching
    return asked


def test_the_registry_follows_a_change_of_store(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that works on one store and then on another registers in the other, unless told where."""
    import mlflow

    for name in ("one", "two"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/{name}.db")
        connection.connect()
        assert mlflow.get_registry_uri() == f"sqlite:///{home}/{name}.db"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{home}/models.db")
    connection.connect().create_registered_model("kept-there")
    assert (home / "models.db").exists()


def test_no_third_party_hears_of_a_run(home: Path) -> None:
    """MLflow's client sends usage data, from a thread, unless told otherwise before its first use."""
    script = """
from mlflow.telemetry.client import get_telemetry_client
from tasks.tracking import connection
connection.connect().create_experiment("m")
print(get_telemetry_client().is_active)
"""
    # MLflow itself is silent in tests and in CI.
    silent = ("PYTEST", "CI", "GITHUB", "MLFLOW")
    env = {name: value for name, value in os.environ.items() if not name.startswith(silent)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "False\n", done.stderr


def test_a_first_try_looks_for_no_earlier_one(home: Path) -> None:
    """Of a flow run that never ran before there is no MLflow run to take up."""
    with run(1) as first:
        pass
    with mlflow_run.run_for("m", "flow-run-1", {}, first_try=True) as other:
        assert not other.resumed
        assert other.id != first.id


def test_artifacts_are_stored_without_asking_where(home: Path) -> None:
    """The run that was just made says where its artifacts lie."""
    (home / "a.txt").write_text("a")
    with run(1) as found:
        asked: list[str] = []
        found.client.get_run = asked.append
        uri = found.log_file(home / "a.txt", "folder")
        assert artifacts.fetch(uri).read_text() == "a"
    assert not asked
