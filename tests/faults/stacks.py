"""The stacks of the trials, and how often each kind of fault is drawn there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import home
import s3_home
import servers_home
from away import Away
from home import Home
from kinds import ClockJump, DiskFull, Kill
from rivals import Against, Together
from s3_faults import DatabaseKilled, S3Wrong
from s3_relay import FAULTS
from striking import Fault


def servers() -> dict[Fault, int]:
    """Every kind of the stack with servers."""
    return {
        Kill("flow"): 4,
        Kill("step"): 2,
        Kill("all at once"): 3,
        Away("mlflow"): 4,
        Away("prefect"): 4,
        Away("mlflow", refuses=True): 3,
        Together(2): 2,
        Together(4): 2,
        Together(8): 1,
        Against("a rollback"): 2,
        Against("a hand on the alias"): 1,
        Against("an alias removed"): 1,
        Against("a deletion"): 1,
    }


def postgres_and_s3() -> dict[Fault, int]:
    """Every kind of the stack on PostgreSQL and S3."""
    return {
        Kill("all at once"): 2,
        Away("mlflow"): 2,
        DatabaseKilled(): 3,
        **{S3Wrong(fault): 2 for fault in FAULTS},
    }


def embedded() -> dict[Fault, int]:
    """Every kind of the embedded stack, and how often it is drawn."""
    return {
        Kill("flow"): 6,
        Kill("step"): 3,
        Kill("fork server"): 2,
        Kill("Prefect server"): 3,
        Kill("all at once"): 5,
        DiskFull("checkpoint", "first step"): 2,
        DiskFull("merge", "trained"): 2,
        DiskFull("registration", "logging the model"): 2,
        ClockJump(1): 2,
        ClockJump(-1): 2,
        Together(2): 2,
        Together(4): 2,
        Together(8): 1,
        Against("a rollback"): 3,
        Against("a hand on the alias"): 2,
        Against("an alias removed"): 2,
        Against("a deletion"): 2,
    }


@dataclass(frozen=True)
class Stack:
    """`copied`: a folder of it on a copy of the champion store. `faults`: the kinds, and their weights."""

    copied: Callable[[Path, Path], AbstractContextManager[Home]]
    faults: dict[Fault, int]


STACKS = {
    "embedded": Stack(home.copied, embedded()),
    "servers": Stack(servers_home.copied, servers()),
    "postgres-s3": Stack(s3_home.copied, postgres_and_s3()),
}
