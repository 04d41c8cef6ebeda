"""On a worker of a cluster: what must be the same as on the machine that runs the flow.

The flow's side is tasks.orchestration.task_runners.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tasks.contracts.errors import EvaluationError, RegistryError
from tasks.orchestration.progress import flush
from tasks.processes import device
from tasks.tracking import checked_package, connection

WRITERS = ("torch", "transformers")  # other versions write other summaries
FINISH_SECONDS = 30.0  # for a cancelled call, which first ends its step process


@dataclass(frozen=True)
class Origin:
    """What the workers must have in common with the machine that runs the flow."""

    store: str  # MLflow's
    made_with: tuple[str, ...]
    host: str

    def join(self) -> None:
        """On a worker: use the flow's MLflow store.

        Raises EvaluationError if this machine would write other summaries, or has no such store.
        """
        host, mine = platform.node(), made_with()
        if mine != self.made_with:
            raise EvaluationError(
                f"the worker on {host} writes with {_as_text(mine)}, and the flow's machine {self.host} with "
                f"{_as_text(self.made_with)}: such summaries are never compared; give both the same "
                "versions, and both a GPU or neither"
            )
        os.environ["MLFLOW_TRACKING_URI"] = self.store
        if connection.nothing_yet():
            raise EvaluationError(
                f"the worker on {host} has no {connection.shown_uri()}: it is the MLflow store of the flow "
                f"on {self.host}; set MLFLOW_TRACKING_URI there to a server that all workers reach"
            )
        connection.connect()


def origin() -> Origin:
    """What the workers must have in common with this process."""
    return Origin(connection.tracking_uri(), made_with(), platform.node())


def made_with() -> tuple[str, ...]:
    """What summaries depend on besides the model: the kind of processor, and library versions."""
    return (device.compute(), *(metadata.version(name) for name in WRITERS))


def _as_text(values: tuple[str, ...]) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in zip(("on", *WRITERS), values, strict=True)
    )


def package(path: str, model_digest: str) -> Path:
    """As `checked_package.package`.

    Raises EvaluationError if a folder is not the same here as on the flow's machine.
    """
    try:
        return checked_package.package(path, model_digest)
    except RegistryError as error:
        if path.startswith("models:/"):
            raise
        raise EvaluationError(
            f"{path} is not complete on the worker on {platform.node()}: models that are not in MLflow yet, "
            "and the base that they are compared with, must be where all workers see them; set "
            "PRECIS_WORK to a folder of a shared file system, the same path everywhere, or evaluate "
            f"without evaluation.cluster, see docs/devices.md ({error})"
        ) from error


def cancelled() -> Callable[[], bool]:
    """A function that tells whether this thread's current Dask call was cancelled. Ray interrupts it."""
    if importlib.util.find_spec("distributed") is None:
        return lambda: False
    import distributed

    try:
        worker = distributed.get_worker()
    except ValueError:  # no Dask worker's thread
        return lambda: False
    tasks, key = worker.state.tasks, worker.get_current_task()
    return lambda: key not in tasks or tasks[key].state == "cancelled"


async def finish(dask_worker: Any) -> None:
    """Before a worker is ended: wait for cancelled calls, and send their logs and events to Prefect."""
    end = time.monotonic() + FINISH_SECONDS
    while dask_worker.active_threads and time.monotonic() < end:
        await asyncio.sleep(0.1)
    await asyncio.to_thread(flush)
