"""What a step used: seconds, and the most memory that its process held.

A child process (tasks.processes.step_process) leaves it beside its answer; a step of the flow's own
process is timed there. Both become metrics of the MLflow run, `cost/STEP/seconds` and `cost/STEP/memory_gib`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import psutil

from tasks.contracts.records import Cost

FILE = "used.json"
METRIC = "cost/{}/{}"
GIB = 2**30


def leave(folder: Path) -> None:
    """Write what this process used, from its start, to `folder`."""
    seconds = time.time() - psutil.Process().create_time()
    (folder / FILE).write_text(json.dumps([seconds, peak_gib()]))


def by_child(folder: Path) -> Cost:
    """What the child process used that last ran in `folder`; nothing is known of one that died.

    Its memory is the most that it, or one of the processes it shared its work with, held.
    """
    path = folder / FILE
    if not path.exists():
        return Cost()
    seconds, _ = json.loads(path.read_text())
    held = [json.loads(each.read_text())[1] for each in (path, *folder.glob(f"*/{FILE}"))]
    return Cost(seconds, max(held))


class Watch:
    """A clock that runs from its making, for a step of the flow's own process."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def cost(self) -> Cost:
        """What was used until now."""
        return Cost(time.monotonic() - self._begun, peak_gib())


def as_metrics(step: str, cost: Cost) -> dict[str, float]:
    """For MLflow; what is not known is left out."""
    found = {"seconds": cost.seconds, "memory_gib": cost.memory_gib}
    return {METRIC.format(step, name): value for name, value in found.items() if value is not None}


def of_metrics(step: str, metrics: dict[str, float]) -> Cost:
    """Back from a run's metrics."""
    return Cost(*(metrics.get(METRIC.format(step, name)) for name in ("seconds", "memory_gib")))


def peak_gib() -> float:
    """The most this process held so far: allocated on its GPU if it used one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / GIB
    if sys.platform == "linux":  # where what getrusage says of a process begins with its parent's
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak / 2**20
