"""When a fault strikes: at the boundary of a step, or some moments after it; and where it really struck.

Boundaries are seen from outside: lines of the run's log, files of its work folder, and, around the
registration, rows of MLflow's database.
"""

from __future__ import annotations

import random
import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from home import Home, Process, Registry

POLL_SECONDS = 0.01
LONGEST_DELAY = 1.5  # the longest step of the tiny recipe, on a quiet machine


@dataclass
class Watch:
    """What is seen of a run: its log so far, its files, and the registry as it was before."""

    home: Home
    log: Path
    before: Registry
    served: frozenset[Path] = frozenset()
    calls: frozenset[Path] = frozenset()
    checkpoints: frozenset[Path] = frozenset()

    def __post_init__(self) -> None:
        self.served, self.calls, self.checkpoints = (
            frozenset(self.home.store.glob(pattern)) for pattern in (SERVED, CALLS, CHECKPOINTS)
        )

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def registry(self) -> Registry:
        """The registry now; as before while a writer holds it."""
        try:
            return self.home.registry()
        except sqlite3.OperationalError:
            return self.before


SERVED, CALLS = "work/served/m-*", "work/register/*/call.json"
CHECKPOINTS = "work/train/*/job/checkpoints/checkpoint-*/complete.json"


def _logged(pattern: str) -> Callable[[Watch], bool]:
    return lambda watch: re.search(pattern, watch.text()) is not None


def _finished(task: str) -> Callable[[Watch], bool]:
    return _logged(rf"Task run '{task}[^']*' - Finished in state")


def _new(pattern: str, before: str) -> Callable[[Watch], bool]:
    return lambda watch: bool(set(watch.home.store.glob(pattern)) - getattr(watch, before))


# In the order in which a promotion meets them.
EVENTS: dict[str, Callable[[Watch], bool]] = {
    "started": lambda watch: True,
    "flow begins": _logged("Beginning flow run"),
    "champion read": _finished("champion"),
    "base found": _finished("find base"),
    "ingested": _finished("ingest"),
    "first step": _logged(r"step \d+/"),
    "checkpoint": _new(CHECKPOINTS, "checkpoints"),
    "trained": _finished("train"),
    "merged": _finished("merge"),
    "challenger evaluated": _finished("evaluate challenger"),
    "champion evaluated": _finished("evaluate champion"),
    "judged": _finished("gate"),
    "logging the model": _new(SERVED, "served"),
    "clean process": _new(CALLS, "calls"),
    "claimed": lambda watch: watch.registry().versions > watch.before.versions,
    "alias moved": lambda watch: watch.registry().alias != watch.before.alias,
    "claim finished": lambda watch: watch.registry().finished > watch.before.finished,
    "registered": _finished("register"),
    "reported": _finished("report"),
}
BEFORE_TRAINED = tuple(EVENTS)[: tuple(EVENTS).index("merged")]
WRITES = ("claimed", "alias moved", "claim finished")  # hundredths of a second apart


@dataclass(frozen=True)
class Moment:
    """`delay` seconds after an event: 0 is the boundary itself."""

    event: str
    delay: float

    @property
    def needs_training(self) -> bool:
        """Whether a run that takes its training from the store would not meet it."""
        return self.event in BEFORE_TRAINED[4:]

    def __str__(self) -> str:
        return f"{self.event}{f' + {self.delay:.2f} s' if self.delay else ''}"


def drawn(rng: random.Random, events: tuple[str, ...] = tuple(EVENTS)) -> Moment:
    """A moment: half are boundaries, half lie in between."""
    event = rng.choice(events)
    if rng.random() < 0.5:
        return Moment(event, 0.0)
    longest = 0.1 if event in WRITES else 6.0 if event == "started" else LONGEST_DELAY
    return Moment(event, round(rng.uniform(0.0, longest), 3))


def reach(moment: Moment, watch: Watch, process: Process) -> bool:
    """Wait for a moment of a run; False when the run has ended before."""
    seen = EVENTS[moment.event]
    while not seen(watch):
        if process.poll() is not None:
            return False
        time.sleep(POLL_SECONDS)
    end = time.monotonic() + moment.delay
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
    return process.poll() is None


def place(watch: Watch) -> str:
    """Where a run stands: the last step that its log tells, and the registry."""
    told = re.findall(r"(?:Task|Flow) run '([^']+)' - (.*)", watch.text())
    last = "before the flow"
    if told:
        last = f"{re.sub('-[0-9a-f]{3}$', '', told[-1][0])}: {told[-1][1][:40]}"
    registry = watch.registry()
    changed = "" if registry == watch.before else f"; {registry}"
    return f"{last}{changed}"
