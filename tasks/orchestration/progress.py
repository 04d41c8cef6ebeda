"""What Prefect is told of a step: its progress, where a flow run is under way, and the last of it."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker


class Progress:
    """Progress of one step, 0 to 1; the artifact's key is the step's name."""

    def __init__(self, name: str) -> None:
        self.id: UUID | None = None
        if FlowRunContext.get():
            self.id = cast(UUID, create_progress_artifact(0.0, key=name, description=name))

    def update(self, share: float) -> None:
        """Show a share of the whole, 0 to 1."""
        if self.id:
            update_progress_artifact(self.id, progress=round(100 * min(share, 1.0), 1))


def send_the_rest() -> None:
    """Prefect sends logs and events from threads; what is left goes now, not when the process ends."""
    for sender in (APILogWorker, EventsWorker):
        sender.drain_all(timeout=10)
