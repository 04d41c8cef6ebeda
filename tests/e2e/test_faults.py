"""Kills and races of whole runs: whatever happens, the champion stands or was fully succeeded."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from stack import Stack

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert process.poll() is None, "the run ended before"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack(tmp_path_factory.mktemp("faults"))


@pytest.mark.long
def test_kill_9_in_training_and_a_rerun_goes_on_from_the_checkpoint(stack: Stack) -> None:
    """The trainer dies with its flow, and the next run of the recipe takes up its checkpoint."""
    process = stack.start({})
    work = stack.folder / "mlruns/work/train"
    wait_for(lambda: list(work.glob("*/job/checkpoints/checkpoint-*")), process)
    children = family(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    trainers = [
        c
        for c in children
        if c.is_running() and "tasks.processes.step_process" in " ".join(_words(c))
    ]
    psutil.wait_procs(trainers, timeout=60)
    assert not [c for c in trainers if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
    outcome = stack.run()
    assert (outcome["verdict"], outcome["version"]) == ("PROMOTE", 1)
    log = next(work.glob("*/log.txt")).read_text()
    assert "resum" in log.lower()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_two_runs_at_once_register_one_after_the_other_or_not_at_all(stack: Stack) -> None:
    """Both gated against the same champion: at most one succeeds it; the other is gated again."""
    runs = [stack.start({"training.seed": seed, "data.train_rows": 300}) for seed in (1, 2)]
    outcomes = [stack.finish(run) for run in runs]
    promoted = sorted(o["version"] for o in outcomes if o["version"])
    champion = stack.ask("champion", "demo")
    assert champion["version"] == (promoted[-1] if promoted else 1)
    against = [o["champion_version"] for o in outcomes if o["version"]]
    assert len(set(against)) == len(against)  # no two succeeded the same champion


def test_kill_9_while_registering_leaves_a_whole_champion(tmp_path: Path) -> None:
    """Killed at the clean-process check: nothing is registered; the rerun registers it."""
    stack = Stack(tmp_path / "register")
    process = stack.start({})
    work = stack.folder / "mlruns/work/register"
    wait_for(lambda: list(work.glob("*/call.json")), process, 600)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert stack.ask("champion", "demo") is None
    outcome = stack.run()
    assert (outcome["verdict"], outcome["version"]) == ("PROMOTE", 1)
    assert {"train", "evaluate.challenger"} <= set(outcome["skipped"])
