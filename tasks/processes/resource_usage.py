"""What a step used: seconds, and the peak memory of its process.

A step process (tasks.processes.step_process) writes it beside its answer; a step in the flow's own
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
from tasks.contracts.units import GIB

FILE = "used.json"
METRIC = "cost/{}/{}"


def leave(folder: Path) -> None:
    """Write what this process used, from its start, to `folder`."""
    seconds = time.time() - psutil.Process().create_time()
    (folder / FILE).write_text(json.dumps([seconds, peak_gib()]))


def by_child(folder: Path) -> Cost:
    """What the last step process in `folder` used; an empty Cost for one that died.

    Its memory is the largest peak among it and the processes that shared its work.
    """
    path = folder / FILE
    if not path.exists():
        return Cost()
    seconds, _ = json.loads(path.read_text())
    peaks_gib = [json.loads(file.read_text())[1] for file in (path, *folder.glob(f"*/{FILE}"))]
    return Cost(seconds, max(peaks_gib))


class Watch:
    """A clock that starts when it is made, for a step in the flow's own process."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def cost(self) -> Cost:
        """What was used so far."""
        return Cost(time.monotonic() - self._begun, peak_gib())


def as_metrics(step: str, cost: Cost) -> dict[str, float]:
    """MLflow metrics of a cost; what is not known is left out."""
    values = {"seconds": cost.seconds, "memory_gib": cost.memory_gib}
    return {METRIC.format(step, name): value for name, value in values.items() if value is not None}


def of_metrics(step: str, metrics: dict[str, float]) -> Cost:
    """The cost that a run's metrics hold."""
    return Cost(*(metrics.get(METRIC.format(step, name)) for name in ("seconds", "memory_gib")))


def peak_gib() -> float:
    """Peak memory of this process so far, GiB: allocated on its GPU if it used one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / GIB
    if sys.platform == "linux":  # where getrusage's peak starts at the size of the parent process
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak / 2**20
