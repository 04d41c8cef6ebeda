"""What steps used: measured in their own processes, kept as metrics."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tasks.contracts import errors
from tasks.contracts.records import Cost
from tasks.processes import resource_usage, step_process


# What the children run: `tests/` is on their path through PYTHONPATH.
def hold(mib: int, seconds: float) -> int:
    held = bytearray(b"x") * (mib * 2**20)
    time.sleep(seconds)
    return len(held)


def peak() -> float:
    return resource_usage.peak_gib()


def vanish() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(params=[True, False], ids=["fresh", "forked"])
def fresh(
    request: pytest.FixtureRequest, light_libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Whether steps run in a fresh interpreter; else they are forked."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{light_libraries}")
    return bool(request.param)


def test_a_child_leaves_what_it_used(tmp_path: Path, fresh: bool) -> None:
    """Seconds since its start, imports included, and its peak; of one that died nothing is known."""
    step_process.run(
        "test_resource_usage:hold", {"mib": 200, "seconds": 0.5}, tmp_path, fresh=fresh
    )
    found = resource_usage.by_child(tmp_path)
    assert found.seconds is not None
    assert found.memory_gib is not None
    assert 0.5 < found.seconds < 30
    assert 200 / 1024 < found.memory_gib < 0.5
    with pytest.raises(errors.ChildFailed):
        step_process.run("test_resource_usage:vanish", {}, tmp_path, fresh=fresh)
    assert resource_usage.by_child(tmp_path) == Cost()


def test_a_large_parent_does_not_count(tmp_path: Path, fresh: bool) -> None:
    """getrusage would start at its size; training's own measure is the same function."""
    large = bytearray(b"x") * (700 * 2**20)
    assert resource_usage.peak_gib() > 0.7
    assert step_process.run("test_resource_usage:peak", {}, tmp_path, fresh=fresh) < 0.5
    del large


def test_metrics_hold_what_is_known() -> None:
    """There and back; what is not known is no metric, and so unknown when it is read."""
    cost = Cost(12.5, None)
    assert resource_usage.as_metrics("train", cost) == {"cost/train/seconds": 12.5}
    assert resource_usage.of_metrics("train", resource_usage.as_metrics("train", cost)) == cost
    assert resource_usage.of_metrics("merge", resource_usage.as_metrics("train", cost)) == Cost()
