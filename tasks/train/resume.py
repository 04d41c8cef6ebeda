"""A job from its folder's point of view: what there is of it, and what it leaves.

In a team (tasks.train.collectives) all call these; the first one reads and writes, and tells the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.contracts import digest
from tasks.train import result
from tasks.train.checkpoints import local, store


@dataclass(frozen=True)
class Start:
    """Where a job stands: its digest; finished before, or the checkpoint that it goes on from."""

    key: str
    answer: dict[str, Any] | None = None
    resume: Path | None = None
    kept: store.Store | None = None  # the first one has it


def begin(describe: Callable[[], dict[str, Any]], folder: Path, place: str | None) -> Start:
    """Make the folder that job's, and find what there is of it here and in the store at `place`."""
    from tasks.train import collectives

    kept: store.Store | None = None
    found: Start | None = None
    if collectives.rank() == 0:
        job = describe()
        resume = local.prepare(folder, job)
        answer = local.finished(folder)
        if not answer and (kept := store.open_store(place, job)):
            resume = kept.newest(folder / "checkpoints", resume)
        found = Start(digest.of_value(job), answer, resume)
    known: Start = collectives.share(found)
    return replace(known, kept=kept)


def end(
    model: Any, base_name: str, folder: Path, metrics: dict[str, float], key: str
) -> dict[str, Any]:
    """Write the adapter and keep the answer (tasks.train.qlora.train's)."""
    from tasks.train import collectives

    answer = None
    if collectives.rank() == 0:
        adapter = folder / "adapter"
        result.save_adapter(model, base_name, adapter)
        answer = {
            "adapter": str(adapter),
            "digest": digest.of_folder(adapter),
            "metrics": metrics,
            "job": key,
        }
        local.finish(folder, answer)
    found: dict[str, Any] = collectives.share(answer)
    return found
