"""Cancel, kill -9 and servers that go away: each run ends in a true state, and a retry finishes it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from servers import Servers, alive, below, wait_for
from stack import PRECIS, UNREACHABLE, Stack, stack_with_judged

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]
MINUTES_5 = 300


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder, often = tmp_path_factory.mktemp("crashes"), {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    with Servers(folder, extra=often) as running:
        yield running


_seed = iter(range(100, 200))
# What matters here is that it trains for some seconds, not what it learns; a promotion would be checked
# in a process of its own.
QUICK = UNREACHABLE | {
    "data.train_rows": 120,
    "training.save_steps": 5,
    "data.evaluation_rows": 8,
    "evaluation.max_new_tokens": 16,
}


def training(servers: Servers, **changes: Any) -> tuple[str, list[psutil.Process]]:
    """A run of another seed, once its first checkpoint is whole; and its training processes."""
    before = set(_checkpoints(servers))
    run_id = servers.run("retrain", QUICK | {"training.seed": next(_seed)} | changes)
    wait_for(lambda: set(_checkpoints(servers)) - before, 300, f"no checkpoint; {servers.log()}")
    return run_id, servers.trainers()


def _checkpoints(servers: Servers) -> list[Path]:
    work = servers.client.folder / "mlruns/work/train"
    return list(work.glob("*/job/checkpoints/checkpoint-*/complete.json"))


def flow_process(trainer: psutil.Process) -> psutil.Process:
    """The process that runs the flow: it started the server that forked the trainer."""
    fork_server = trainer.parent()
    assert fork_server is not None
    assert "tasks.processes.fork_server" in fork_server.cmdline()
    flow = fork_server.parent()
    assert flow is not None
    return flow


def finishes(servers: Servers, run_id: str, at_once: bool = False) -> dict[str, Any]:
    """Retried, the run completes, and training went on from a checkpoint. `at_once`: not by a command."""
    if at_once:
        state = {"state": {"type": "SCHEDULED"}, "force": True}
        servers.ask(f"flow_runs/{run_id}/set_state", state)
    else:
        servers.retry(run_id)
    state = servers.wait(run_id)
    if "infrastructure exited" in state["message"]:
        # Prefect's worker may report a crash twice, seconds apart: the second undid our quick retry.
        servers.retry(run_id)
        state = servers.wait(run_id)
    assert state["type"] == "COMPLETED", state["message"]
    assert went_on(servers, run_id)
    assert servers.mlflow_runs()[run_id]["info"]["status"] == "FINISHED"
    return state


def went_on(servers: Servers, run_id: str) -> bool:
    """Whether training went on from a checkpoint, as the run's own log says."""
    body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
    lines = [line["message"] for line in servers.ask("logs/filter", body)]
    return any(line.startswith("training goes on from step") for line in lines)


def test_cancel_leaves_a_checkpoint_and_no_process_and_a_retry_resumes(servers: Servers) -> None:
    """`prefect flow-run cancel`: the training group is gone within 30 seconds; MLflow says killed.

    Within as long the UI says Cancelled, and the log does not say after it that the run is Running.
    """
    run_id, trainers = training(servers)
    servers.prefect("flow-run", "cancel", run_id)
    asked, at = time.monotonic(), datetime.now(UTC).isoformat()
    wait_for(lambda: not alive(trainers), 60, "training goes on")
    assert time.monotonic() - asked < 30
    assert servers.wait(run_id)["type"] == "CANCELLED"
    assert time.monotonic() - asked < 30
    later = {"logs": {"flow_run_id": {"any_": [run_id]}, "timestamp": {"after_": at}}}
    assert not [line for line in servers.ask("logs/filter", later) if "Running" in line["message"]]
    wait_for(lambda: servers.mlflow_runs()[run_id]["info"]["status"] == "KILLED", 60, "not killed")
    assert _checkpoints(servers)
    finishes(servers, run_id)


def test_kill_9_of_the_training_process_is_repaired_by_the_run_itself(servers: Servers) -> None:
    """The step is tried once more, from its checkpoint, and the run completes."""
    run_id, trainers = training(servers)
    trainers[0].kill()
    state = servers.wait(run_id)
    assert state["type"] == "COMPLETED", state["message"]
    assert went_on(servers, run_id)


def test_kill_9_of_the_fork_server_is_repaired_by_the_run_itself(servers: Servers) -> None:
    """The trainer ends with it; the step is tried once more, forked from another."""
    run_id, trainers = training(servers)
    fork_server = trainers[0].parent()
    assert fork_server is not None
    fork_server.kill()
    state = servers.wait(run_id)
    assert state["type"] == "COMPLETED", state["message"]
    assert went_on(servers, run_id)


def test_kill_9_of_the_flow_process_ends_training_and_a_retry_finishes(servers: Servers) -> None:
    """The worker sees it and says Crashed; the trainer does not outlive its flow.

    Retried while the worker still reports the crash, as by a quick click in the UI, it ends no worker.
    """
    run_id, trainers = training(servers)
    flow_process(trainers[0]).kill()
    wait_for(lambda: not alive(trainers), 60, "training outlived its flow")
    assert servers.wait(run_id, seconds=MINUTES_5)["type"] == "CRASHED"
    finishes(servers, run_id, at_once=True)
    assert servers.answers("worker")


@pytest.mark.long
def test_kill_9_of_worker_and_flow_is_noticed_by_missing_heartbeats(servers: Servers) -> None:
    """Nobody is left to say it crashed: the zombie automation does, and another worker retries."""
    run_id, trainers = training(servers)
    flow = flow_process(trainers[0])
    servers.kill("worker")
    flow.kill()
    wait_for(lambda: not alive(trainers), 60, "training outlived its flow")
    state = servers.wait(run_id, seconds=MINUTES_5)
    assert state["type"] == "CRASHED"
    assert "no heartbeat for 120 seconds" in state["message"]
    servers.start("worker")
    finishes(servers, run_id)


@pytest.mark.long
def test_kill_9_of_the_worker_alone_lets_its_run_end(servers: Servers) -> None:
    """The flow's own process goes on without the worker, or is crashed and retried by a new one."""
    run_id, _ = training(servers)
    servers.kill("worker")
    state = servers.wait(run_id, seconds=MINUTES_5)
    servers.start("worker")
    if state["type"] != "COMPLETED":
        assert state["type"] == "CRASHED"
        finishes(servers, run_id)


@pytest.mark.long
def test_a_restart_of_the_prefect_server_in_the_middle(servers: Servers) -> None:
    """Killed and started again during training: the run goes on, or a retry finishes it."""
    run_id, _ = training(servers)
    servers.kill("prefect")
    servers.start("prefect")
    state = servers.wait(run_id, seconds=MINUTES_5)
    if state["type"] != "COMPLETED":
        finishes(servers, run_id)


@pytest.mark.long
def test_an_mlflow_server_away_for_a_minute(servers: Servers) -> None:
    """MLflow is asked again until it is back; the run completes."""
    run_id, _ = training(servers)
    servers.stop("mlflow")
    gone = time.monotonic()
    wait_for(lambda: time.monotonic() - gone > 60, 90, "a minute")
    assert servers.state(run_id)["type"] == "RUNNING"
    servers.start("mlflow")
    state = servers.wait(run_id, seconds=MINUTES_5)
    assert state["type"] == "COMPLETED", state["message"]


def test_kill_9_of_an_embedded_run_leaves_no_server(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its temporary Prefect server, and all else below it, end with it."""
    stack = stack_with_judged(tmp_path / "embedded", tmp_path_factory)
    work = stack.folder / "mlruns/work/train"
    before = len(list(work.glob("*/call.json")))
    process = stack.start({"training.seed": 1}, real=True)
    wait_for(lambda: len(list(work.glob("*/call.json"))) > before, 300, "training does not start")
    family = below(process.pid)
    assert any("uvicorn" in " ".join(p.cmdline()) for p in family)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not alive(family), 60, f"left behind: {alive(family)}")
    # The next run of the model says what the dead one could not: the same recipe without training.
    stack.run()
    uri = f"sqlite:///{stack.folder}/mlruns/mlflow.db"
    runs = mlflow.MlflowClient(uri).search_runs(
        ["1"], "tags.`precis.flow` = 'retrain'", order_by=["attributes.start_time ASC"]
    )
    assert [run.info.status for run in runs] == ["FINISHED", "FAILED", "FINISHED"]
    assert "its process is gone" in runs[1].data.tags["precis.error"]


def test_up_says_what_is_in_the_way(tmp_path: Path, servers: Servers) -> None:
    """A taken port is named with the option that chooses another, all at once; nothing is started."""
    stack = Stack(tmp_path / "taken")
    ports = ["--port", str(servers.ports["prefect"]), "--mlflow-port", str(servers.ports["mlflow"])]
    done = subprocess.run(
        [PRECIS, "up", *ports],
        cwd=stack.folder,
        env=stack.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    for option in ("--port", "--mlflow-port"):
        assert f"is taken; name another with {option}" in done.stderr
