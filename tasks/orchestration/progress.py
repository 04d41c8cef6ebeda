"""Report a step's progress to Prefect, and flush logs and events."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker


class Progress:
    """Progress of one step, 0 to 1: an artifact with its name as key. Does nothing outside a flow run."""

    def __init__(self, name: str) -> None:
        self.id: UUID | None = None
        if FlowRunContext.get():
            self.id = cast(UUID, create_progress_artifact(0.0, key=name, description=name))

    def update(self, fraction: float) -> None:
        """Show how much of the step is done, 0 to 1."""
        if self.id:
            update_progress_artifact(self.id, progress=round(100 * min(fraction, 1.0), 1))


def flush() -> None:
    """Send the logs and events that Prefect's threads still hold, before the process ends."""
    for sender in (APILogWorker, EventsWorker):
        sender.drain_all(timeout=10)
