"""Reading the registry: who is champion and why, and the history."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tasks.register.task import history_of, standing
from tasks.tracking import connection
from tasks.tracking.history import HistoryRecord


@dataclass(frozen=True)
class Champion:
    """The champion and the record of its promotion."""

    name: str
    version: int
    model_digest: str
    mlflow_run_id: str
    since: str
    description: str
    promoted_by: HistoryRecord | None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def as_text(self) -> str:
        """For a terminal."""
        why = (
            "\n".join(f"  {reason}" for reason in self.promoted_by.reasons)
            if self.promoted_by
            else ""
        )
        return (
            f"{self.name} v{self.version}, champion since {self.since}\n  {self.description}\n{why}\n"
            f"  model digest {self.model_digest}\n  MLflow run {self.mlflow_run_id}\n"
            f"  serve it: MLFLOW_TRACKING_URI={connection.shown_uri()} "
            f"mlflow models serve -m models:/{self.name}@champion --env-manager local"
        )


def champion(name: str) -> Champion | None:
    """The champion of a registered model; None when there is none yet."""
    if connection.nothing_yet():
        return None
    client = connection.connect()
    found = standing(client, name)
    if found is None:
        return None
    records = [r for r in history_of(client, name) if r.version == found.number]
    return Champion(
        name,
        found.number,
        found.digest,
        found.run_id,
        found.created.isoformat(timespec="seconds"),
        found.description,
        records[-1] if records else None,
    )


def history(name: str) -> list[HistoryRecord]:
    """Every promotion, refusal and rollback of a registered model, oldest first."""
    return [] if connection.nothing_yet() else history_of(connection.connect(), name)
