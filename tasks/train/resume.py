"""Resume and finish a job in its folder.

With several ranks (tasks.train.collectives) all of them call these functions; rank 0 reads and writes
the files and broadcasts what it found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.contracts import digest
from tasks.train import result
from tasks.train.checkpoints import local
from tasks.train.checkpoints.store import CheckpointStore, open_store


@dataclass(frozen=True)
class Start:
    """Where a job stands: already finished (`answer`), or the checkpoint that it resumes from."""

    key: str = ""  # the job's digest
    answer: dict[str, Any] | None = None
    checkpoint: Path | None = None
    store: CheckpointStore | None = None  # on rank 0 only


FROM_SCRATCH = Start()


def begin(describe: Callable[[], dict[str, Any]], folder: Path, store_uri: str | None) -> Start:
    """Assign `folder` to the job, and look for its answer or checkpoint, here and in the store.

    `describe()` returns all that the weights depend on; only rank 0 calls it.
    """
    from tasks.train import collectives

    store: CheckpointStore | None = None
    start: Start | None = None
    if collectives.rank() == 0:
        job = describe()
        checkpoint = local.prepare(folder, job)
        answer = local.finished(folder)
        if not answer and (store := open_store(store_uri, job)):
            checkpoint = store.newest(folder / "checkpoints", checkpoint)
        start = Start(digest.of_value(job), answer, checkpoint)
    broadcast: Start = collectives.broadcast(start)
    return replace(broadcast, store=store)


def finish(
    model: Any, base_name: str, folder: Path, metrics: dict[str, float], key: str
) -> dict[str, Any]:
    """Save the adapter and store the answer, which is that of tasks.train.qlora.train."""
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
    broadcast: dict[str, Any] = collectives.broadcast(answer)
    return broadcast
