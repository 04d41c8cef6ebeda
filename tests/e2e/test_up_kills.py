"""kill -9 of each process of `precis up`, each alone, while a run trains.

Where that ends `precis up`, nothing of the stack runs 30 seconds later; else the run is Crashed, or goes on.
Either way the UI is right within five minutes (after a new `precis up` where the first has ended), and a
retry completes the run. By hand: minutes for each.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest
from servers import Servers, alive, below, wait_for
from stack import PRECIS
from test_crashes import MINUTES_5, finishes, flow_process, training

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
GONE_SECONDS = 30


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Servers:
    """A folder, ports, and requests to the servers of the `precis up` that a test starts there."""
    return Servers(tmp_path_factory.mktemp("up-kills"), extra={"PREFECT_WORKER_QUERY_SECONDS": "1"})


@contextmanager
def up(servers: Servers) -> Iterator[subprocess.Popen[bytes]]:
    """`precis up`, ready; ended by TERM if it still runs, and then nothing of it is left."""
    log = servers.folder / "up.log"
    ports = ["--port", str(servers.ports["prefect"]), "--mlflow-port", str(servers.ports["mlflow"])]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [PRECIS, "up", *ports],
            cwd=servers.client.folder,
            env=servers.client.environment(),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        return "Ctrl-C ends" in log.read_text()

    try:
        wait_for(ready, 240, "not ready")
        yield process
    finally:
        family = below(process.pid) if process.poll() is None else []
        process.terminate()
        process.wait(90)
        assert not alive(family)


def command_of(up: psutil.Process, *words: str) -> psutil.Process:
    """The process that `up` started by way of a supervising process, whose command line has these words."""
    found = [
        command
        for supervising in up.children()
        for command in supervising.children()
        if all(word in command.cmdline() for word in words)
    ]
    assert len(found) == 1, [p.cmdline() for p in up.children(recursive=True)]
    return found[0]


def supervising(up: psutil.Process, *words: str) -> psutil.Process:
    """The supervising process of that command."""
    parent = command_of(up, *words).parent()
    assert parent is not None
    return parent


def mlflow_worker(up: psutil.Process) -> psutil.Process:
    """One of the processes that answer MLflow's requests; uvicorn starts another in its place."""
    below = command_of(up, *MLFLOW).children(recursive=True)
    return next(p for p in below if any("spawn_main" in word for word in p.cmdline()))


MLFLOW, WORKER = ("server", "--serve-artifacts"), ("worker", "start")
Victim = Callable[[psutil.Process, list[psutil.Process]], psutil.Process]
ENDS_UP: dict[str, Victim] = {
    "up": lambda up, _: up,
    "worker": lambda up, _: command_of(up, *WORKER),
    "supervising the worker": lambda up, _: supervising(up, *WORKER),
    "Prefect server": lambda up, _: command_of(up, "server", "start"),
    "supervising the Prefect server": lambda up, _: supervising(up, "server", "start"),
    "MLflow server": lambda up, _: command_of(up, *MLFLOW),
    "supervising the MLflow server": lambda up, _: supervising(up, *MLFLOW),
}
GOES_ON: dict[str, Victim] = {
    "flow": lambda _, trainers: flow_process(trainers[0]),
    "fork server": lambda _, trainers: trainers[0].parent(),  # type: ignore[dict-item, return-value]
    "step": lambda _, trainers: trainers[0],
    "one worker of the MLflow server": lambda up, _: mlflow_worker(up),
}


@pytest.mark.parametrize("victim", ENDS_UP)
def test_kill_9_that_ends_the_stack(servers: Servers, victim: str) -> None:
    """Nothing of it runs 30 s later; the next `precis up` shows the run Crashed, and a retry completes it."""
    with up(servers) as process:
        run_id, trainers = training(servers)
        family = below(process.pid)
        ENDS_UP[victim](psutil.Process(process.pid), trainers).kill()
        killed = time.monotonic()
        try:
            wait_for(lambda: not alive(family), 2 * GONE_SECONDS, "some are left")
            print(f"{victim}: nothing left after {time.monotonic() - killed:.1f} s")
            assert time.monotonic() - killed < GONE_SECONDS
        finally:
            left = [(p, p.cmdline()) for p in alive(family)]
            for each, _ in left:
                each.kill()
        assert not left
        assert process.wait(1) in (1, -9)
    if victim != "up":
        shown = (servers.folder / "up.log").read_text()
        assert "Traceback" not in shown.split("Ctrl-C ends")[1].split("log ends:")[0]
    with up(servers):
        started = time.monotonic()
        state = servers.wait(run_id, seconds=MINUTES_5)
        print(f"{victim}: {state['type']} {time.monotonic() - started:.0f} s after the next start")
        assert state["type"] != "COMPLETED"
        finishes(servers, run_id)


@pytest.mark.parametrize("victim", GOES_ON)
def test_kill_9_that_the_stack_survives(servers: Servers, victim: str) -> None:
    """The run completes by itself, or is Crashed and completed by a retry; `precis up` goes on."""
    with up(servers) as process:
        run_id, trainers = training(servers)
        GOES_ON[victim](psutil.Process(process.pid), trainers).kill()
        killed = time.monotonic()
        state = servers.wait(run_id, seconds=MINUTES_5)
        print(f"{victim}: {state['type']} after {time.monotonic() - killed:.0f} s")
        if state["type"] != "COMPLETED":
            finishes(servers, run_id)
        assert process.poll() is None
