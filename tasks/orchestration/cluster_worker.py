"""On a worker of a cluster: what it must share with the machine that runs the flow.

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
from tasks.orchestration.progress import send_the_rest
from tasks.processes import device
from tasks.tracking import artifacts, connection

WRITERS = ("torch", "transformers")  # other versions write other summaries
SETTLE_SECONDS = 30.0  # for a cancelled share, which ends its process first


@dataclass(frozen=True)
class Origin:
    """What the workers have to have in common with the machine that runs the flow."""

    store: str  # MLflow's
    made_with: tuple[str, ...]
    host: str

    def join(self) -> None:
        """On a worker: use the flow's MLflow store.

        Raises EvaluationError where this machine would write other summaries, or has no such store.
        """
        host, mine = platform.node(), made_with()
        if mine != self.made_with:
            raise EvaluationError(
                f"the worker on {host} writes with {_said(mine)}, and the flow on {self.host} would with "
                f"{_said(self.made_with)}: such summaries are never compared; give both the same "
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
    """That of this process."""
    return Origin(connection.tracking_uri(), made_with(), platform.node())


def made_with() -> tuple[str, ...]:
    """What a model's summaries depend on beside it: the kind of processor, and versions."""
    return (device.compute(), *(metadata.version(name) for name in WRITERS))


def _said(values: tuple[str, ...]) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in zip(("on", *WRITERS), values, strict=True)
    )


def package(path: str, model_digest: str) -> Path:
    """As `artifacts.package`.

    Raises EvaluationError where a folder is not here as it is on the flow's machine.
    """
    try:
        return artifacts.package(path, model_digest)
    except RegistryError as error:
        if path.startswith("models:/"):
            raise
        raise EvaluationError(
            f"{path} is not whole on the worker on {platform.node()}: models that are not in MLflow yet, "
            "and the base that they are measured by, have to lie where all workers see them; set "
            "PRECIS_WORK to a folder of a shared file system, the same path everywhere, or evaluate "
            f"without evaluation.cluster, see docs/devices.md ({error})"
        ) from error


def unwanted() -> Callable[[], bool]:
    """Whether the call under way in this thread was cancelled. Ray interrupts it instead."""
    if importlib.util.find_spec("distributed") is None:
        return lambda: False
    import distributed

    try:
        worker = distributed.get_worker()
    except ValueError:  # no Dask worker's thread
        return lambda: False
    known, key = worker.state.tasks, worker.get_current_task()
    return lambda: key not in known or known[key].state == "cancelled"


async def settle(dask_worker: Any) -> None:
    """Before a worker is ended: let cancelled calls end, and what Prefect is to know of them go."""
    end = time.monotonic() + SETTLE_SECONDS
    while dask_worker.active_threads and time.monotonic() < end:
        await asyncio.sleep(0.1)
    await asyncio.to_thread(send_the_rest)
