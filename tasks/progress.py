"""A Prefect progress artifact, and nothing where no flow run is under way."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext


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
