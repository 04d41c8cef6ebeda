"""What all faults share: a run that is waited for until a moment, and what was met there."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import moments
import tiny_run
from checker import Changes
from home import Ended, Home, Process
from moments import Moment, Watch


@dataclass
class Struck:
    """What a fault met. `ended`: the first command's end; `changes`: what the trial itself did."""

    moment: str
    landed: str
    ended: list[Ended]
    changes: Changes = field(default_factory=Changes)
    settings: dict[str, Any] = field(default_factory=dict)  # of the run, for its retry
    killed: bool = False  # then an exit status and a last line are not to be had


class Fault(Protocol):
    """A kind of fault. `name`: as the table has it."""

    @property
    def name(self) -> str: ...

    def strike(self, home: Home, rng: random.Random) -> Struck:
        """Start a run in `home`, and let the fault strike it."""
        ...


def challenger(rng: random.Random, moment: Moment | None) -> dict[str, Any]:
    """A run's settings: one that trains, if the moment lies there; else often one that was judged before."""
    if (moment and moment.needs_training) or rng.random() < 0.3:
        return {"training.seed": rng.randrange(10, 1000)}
    return {"training.seed": rng.choice(tiny_run.JUDGED_SEEDS)}


def begin(
    home: Home, settings: dict[str, Any], moment: Moment, real: bool = False
) -> tuple[Process, Path, Watch, bool]:
    """Start a run and wait for the moment; the last: whether it was met."""
    before = home.settled()
    watch = Watch(home, home.folder / f"{home.commands + 1}.run.log", before)
    process, log = home.start(tiny_run.words(settings), real)
    return process, log, watch, moments.reach(moment, watch, process)
