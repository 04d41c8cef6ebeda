"""Where and when a version was seen to write what it was judged by: noted on the version, newest last."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from tasks.contracts.records import from_json
from tasks.register.version_tags import DIGEST, VERIFIED

MOST = 8  # notes on a version; of the same machine and way only the newest is kept


@dataclass(frozen=True)
class Verified:
    """Stored summaries were written again, and were equal."""

    by: Literal["registration", "rollback", "precis verify", "precis serve"]
    where: str  # the machine
    texts: int  # how many; 0: it was loaded and wrote something
    time: str  # UTC, ISO 8601
    engine: str = "MLflow"

    def line(self) -> str:
        """For people."""
        what = f"{self.texts} stored summaries written again" if self.texts else "loads and writes"
        return f"{self.time[:16].replace('T', ' ')} UTC, {self.by} on {self.where}, {self.engine}: {what}"


def now(by: Any, texts: int, engine: str = "MLflow") -> Verified:
    """Verified on this machine, now."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return Verified(by, socket.gethostname(), texts, time, engine)


def as_tag(notes: Sequence[Verified]) -> str:
    """Notes as the tag holds them."""
    return json.dumps([asdict(each) for each in notes])


def read(text: str) -> tuple[Verified, ...]:
    """The notes of a tag; empty where someone has edited it: they decide nothing."""
    try:
        return tuple(from_json(Verified, json.dumps(each)) for each in json.loads(text or "[]"))
    except (ValueError, TypeError):
        return ()


def add(client: Any, name: str, number: int, model_digest: str, note: Verified) -> None:
    """Note it on the version, if that still has this model. Raises MlflowException."""
    tags = client.get_model_version(name, str(number)).tags
    if tags.get(DIGEST) != model_digest:
        return
    before = read(tags.get(VERIFIED, ""))
    same = (note.by, note.where, note.engine)
    kept = [each for each in before if (each.by, each.where, each.engine) != same]
    notes = [*kept[-(MOST - 1) :], note]
    client.set_model_version_tag(name, str(number), VERIFIED, as_tag(notes))
