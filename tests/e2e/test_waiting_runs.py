"""Runs that wait for a model's slot, on a real server with a worker that has one place or two."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Cancelling
from servers import BIN, wait_for
from stack import Stack

from flows.stack import services

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

# The slot as the retrain flow takes it, around a wait in place of the work.
FLOW = """
import time
from pathlib import Path
from prefect import flow
from prefect.states import Completed
from tasks.orchestration import concurrency

@flow(name="retrain", flow_run_name="{recipe[name]} {until}")
def retrain(recipe: dict, if_busy: str = "wait", until: str = ""):
    try:
        with concurrency.sole_retrain(recipe["name"], if_busy == "wait"):
            end = time.monotonic() + 200
            while until and not Path(until).exists() and time.monotonic() < end:
                time.sleep(0.1)
    except concurrency.Busy:
        return Completed(name="BUSY")
    return Completed(name="DONE")
"""


@pytest.fixture(scope="module")
def deployed(
    prefect_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SyncPrefectClient, Any]]:
    """The flow, deployed; a client of the server."""
    folder = tmp_path_factory.mktemp("waiting")
    (folder / "waits.py").write_text(FLOW)
    with (
        temporary_settings({PREFECT_API_URL: prefect_server}),
        get_client(sync_client=True) as client,
    ):
        own = Stack(folder / "pool", env={"PREFECT_API_URL": prefect_server})
        words = [str(BIN / "prefect"), "work-pool", "create", "waiting", "--type", "process"]
        subprocess.run(words, env=own.environment(), check=True, capture_output=True)
        source = flow.from_source(source=str(folder), entrypoint="waits.py:retrain")
        yield (
            client,
            source.deploy(name="waiting", work_pool_name="waiting", print_next_steps=False),
        )


@pytest.fixture
def worker(
    prefect_server: str, tmp_path: Path, deployed: Any
) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Starts a worker of so many places; ended afterwards."""
    started = []

    def start(places: int) -> subprocess.Popen[bytes]:
        own = Stack(tmp_path / f"worker-{places}", env={"PREFECT_API_URL": prefect_server})
        words = services.worker("waiting")
        services.limit_pool(prefect_server, "waiting", places, os.environ)
        env = own.environment() | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
        log = (tmp_path / "worker.log").open("w")
        process = subprocess.Popen(words, env=env, stdout=log, stderr=log, cwd=tmp_path)
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


class Runs:
    """Starts runs of a model and tells their states."""

    def __init__(self, deployed: tuple[SyncPrefectClient, Any], folder: Path) -> None:
        (self.client, self.deployment), self.folder = deployed, folder
        self.model = f"model-{uuid4().hex[:6]}"

    def start(self, model: str = "", if_busy: str = "wait", until: str = "") -> FlowRun:
        parameters = {
            "recipe": {"name": model or self.model},
            "if_busy": if_busy,
            "until": str(self.folder / until) if until else "",
        }
        return self.client.create_flow_run_from_deployment(self.deployment, parameters=parameters)

    def state(self, run: FlowRun) -> str:
        state = self.client.read_flow_run(run.id).state
        assert state is not None
        return str(state.name)

    def wait(self, run: FlowRun, name: str, seconds: float = 240) -> FlowRun:
        wait_for(lambda: self.state(run) == name, seconds, f"{name}; it is {self.state(run)}")
        return self.client.read_flow_run(run.id)

    def held_slots(self) -> int:
        """Of the model's limit, which its first run makes."""
        try:
            limit = self.client.read_global_concurrency_limit_by_name(
                f"precis-retrain-{self.model}"
            )
        except ObjectNotFound:
            return 0
        return limit.active_slots

    def let_go(self, until: str) -> None:
        (self.folder / until).touch()


@pytest.fixture
def runs(deployed: tuple[SyncPrefectClient, Any], tmp_path: Path) -> Runs:
    return Runs(deployed, tmp_path)


def test_runs_that_wait_take_no_place_and_start_when_the_first_ends(
    runs: Runs, worker: Any
) -> None:
    """Two places: one holds the slot, two wait, and another model's run goes through beside them."""
    first = runs.start(until="go")
    worker(2)
    runs.wait(first, "Running")
    waiting = [runs.start() for _ in range(2)]
    shown = [runs.wait(run, "AwaitingConcurrencySlot") for run in waiting]
    for number, run in enumerate(shown, 1):
        assert run.state is not None
        assert first.name in str(run.state.message) or runs.model in str(run.state.message)
        assert f"number {number} in line" in str(run.state.message)
    runs.wait(runs.start(model=f"{runs.model}-other"), "DONE")
    ended = runs.start(if_busy="end")
    runs.wait(ended, "BUSY")
    assert runs.state(first) == "Running"
    runs.let_go("go")
    runs.wait(first, "DONE")
    start = time.monotonic()
    for run in waiting:  # each is started by the one before
        runs.wait(run, "DONE", seconds=55)
    assert time.monotonic() - start < 50  # without that: after 60 seconds


def test_a_run_that_does_not_wait_ends_though_the_worker_is_full(runs: Runs, worker: Any) -> None:
    """One place, which the holder has: the holder ends the other, which has never started."""
    first = runs.start(until="go")
    worker(1)
    runs.wait(first, "Running")
    waits, ends = runs.start(), runs.start(if_busy="end")
    other = runs.start(model=f"{runs.model}-other", if_busy="end")
    done = runs.wait(ends, "BUSY", seconds=40)
    assert done.run_count == 0
    assert runs.state(first) == "Running"
    runs.let_go("go")
    for run in (first, waits, other):  # another model is not busy
        runs.wait(run, "DONE")


@pytest.mark.long  # two starts of a run after a lease: minutes, and on a busy machine it was not seen to pass
def test_a_killed_holder_does_not_keep_those_that_wait(
    runs: Runs, worker: Any, deployed: Any, tmp_path: Path
) -> None:
    """No one starts them: each tries again by itself, once the slot's lease has ended."""
    first = runs.start(until="never")
    process = worker(2)
    runs.wait(first, "Running")
    waits = runs.start()
    runs.wait(waits, "AwaitingConcurrencySlot")
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    runs.wait(waits, "DONE", seconds=400)


def test_a_run_that_was_killed_and_retried_waits_for_itself(runs: Runs, worker: Any) -> None:
    """And says so, in place of a run that is not there: its slot's lease goes on for a minute."""
    first = runs.start(until="never")
    process = worker(1)
    runs.wait(first, "Running")
    wait_for(lambda: runs.held_slots() == 1, 60, "the run has no slot")
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    runs.wait(first, "Crashed")
    runs.client.set_flow_run_state(first.id, AwaitingRetry())
    shown = runs.wait(first, "AwaitingConcurrencySlot")
    assert shown.state is not None
    assert "by its own earlier attempt, which keeps the slot" in str(shown.state.message)


def test_a_run_that_waits_can_be_cancelled(runs: Runs, worker: Any) -> None:
    """From its list, as any scheduled run; the next one starts all the same."""
    first = runs.start(until="go")
    worker(1)
    runs.wait(first, "Running")
    runs.let_go("go")
    runs.wait(first, "DONE")
    second = runs.start(until="second")
    runs.wait(second, "Running")
    assert runs.client.set_flow_run_state(second.id, Cancelling()).status
    runs.wait(second, "Cancelled")
