"""Kills and races of whole runs: whatever happens, the champion stands or was fully succeeded."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from stack import UNREACHABLE, Process, Stack, stack_with_judged

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]


def wait_for(what: Callable[[], Any], process: Process, seconds: float = 300) -> Any:
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
    process = stack.start({}, real=True)
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


@pytest.fixture
def judged(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """A stack where all but gate and registration of SMALL is done."""
    return stack_with_judged(tmp_path / "judged", tmp_path_factory)


def test_a_refused_merge_costs_no_training(judged: Stack) -> None:
    """The error names the settings that accept the drift; a run with them goes on from the adapter."""
    process = judged.start({"merge.max_kl": 1e-12} | UNREACHABLE)
    process.communicate()
    assert process.returncode == 1
    log = (judged.folder / "err.log").read_text()
    assert "the merged model drifted from its adapter" in log
    assert "Training is done, and its adapter is kept" in log
    accepted = dict(re.findall(r"--set (merge\.\w+)=([0-9.e+-]+)", log))
    assert set(accepted) == {"merge.max_kl"}
    outcome = judged.finish(judged.start(accepted | UNREACHABLE))
    assert "train" in outcome["skipped"]
    assert "merge" not in outcome["skipped"]


def test_two_runs_at_once_register_one_after_the_other_or_not_at_all(judged: Stack) -> None:
    """Both gated against the same champion: at most one succeeds it; the other is gated again.

    Both models are judged before, so that the two runs come to the registration together.
    """
    other = {"merge.onto": "original_base", "merge.max_kl": 0.1, "merge.min_top1_agreement": 0.5}
    refused = judged.run(**{k.replace(".", "__"): v for k, v in (other | UNREACHABLE).items()})
    runs = [judged.start(changes) for changes in ({}, other)]
    outcomes = [judged.finish(run) for run in runs]
    assert len({o["model_digest"] for o in [refused, *outcomes]}) == 2  # of the two, not of more
    promoted = sorted(o["version"] for o in outcomes if o["version"])
    assert promoted[0] == 1
    champion = judged.ask("champion", "demo")
    assert champion["version"] == promoted[-1]
    against = [o["champion_version"] for o in outcomes if o["version"]]
    assert len(set(against)) == len(against)  # no two succeeded the same champion
    for outcome in outcomes:
        assert (
            outcome["version"] or outcome["champion_version"] == 1
        )  # judged again after the first


def test_kill_9_while_registering_leaves_a_whole_champion(judged: Stack) -> None:
    """Killed at the clean-process check: nothing is registered; the rerun registers it."""
    process = judged.start({})
    work = judged.folder / "mlruns/work/register"
    wait_for(lambda: list(work.glob("*/call.json")), process, 600)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert judged.ask("champion", "demo") is None
    outcome = judged.run()
    assert (outcome["verdict"], outcome["version"]) == ("PROMOTE", 1)
    assert {"train", "evaluate.challenger"} <= set(outcome["skipped"])
