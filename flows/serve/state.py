"""What is served now and what was refused: the follower sets it, the proxy reads it.

One event loop reads and sets it, so a takeover is one assignment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flows.serve.engines import Engine, Target

MOST_REFUSALS = 20


@dataclass(frozen=True)
class Refusal:
    """A version that is not served, and why."""

    target: Target
    reason: str
    when: str

    def as_dict(self) -> dict[str, Any]:
        """For /health."""
        return {
            "version": self.target.number,
            "digest": self.target.digest,
            "reason": self.reason,
            "when": self.when,
        }


class ServingState:
    """The engine that answers, and what is known of others."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.since = ""
        self.rows_checked: int | None = None
        self.refusals: list[Refusal] = []
        self.registry_error: str | None = None  # what went wrong when it was asked last
        self.restarts = self.refused_count = 0
        self._changed = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered."""
        return self.engine is not None and not self.engine.has_ended()

    def put(self, engine: Engine | None) -> Engine | None:
        """Let this engine answer from now on (None: there is none); returns the one before."""
        before, self.engine = self.engine, engine
        self.since = now()
        self._changed.set()
        self._changed = asyncio.Event()
        return before

    def refuse(self, target: Target, reason: str) -> None:
        """Remember why a version is not served."""
        self.refused_count += 1
        self.refusals = [*self.refusals, Refusal(target, reason, now())][-MOST_REFUSALS:]

    @asynccontextmanager
    async def engine_in_use(self) -> AsyncIterator[Engine]:
        """The engine that answers, kept while the block runs; waits for one while there is none."""
        while not self.is_ready:
            await self._changed.wait()
        assert self.engine is not None
        async with self.engine.in_use() as engine:
            yield engine


def now() -> str:
    """The time, for people and JSON."""
    return datetime.now(UTC).isoformat(timespec="seconds")
