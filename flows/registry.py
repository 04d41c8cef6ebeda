"""Read the registry: the champion and why it was promoted, and the history."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

from flows import champion_moves
from tasks.register.task import ALIAS, find_champion, history_of, require_known
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
        """All of it, for a terminal."""
        reasons = (
            "\n".join(f"  {reason}" for reason in self.promoted_by.reasons)
            if self.promoted_by
            else ""
        )
        return (
            f"{self.name} v{self.version}, champion since {self.since}\n  {self.description}\n{reasons}\n"
            f"  model digest {self.model_digest}\n  MLflow run {self.mlflow_run_id}\n"
            f"  serve it: MLFLOW_TRACKING_URI={connection.shown_uri()} "
            f"mlflow models serve -m models:/{self.name}@{ALIAS} --env-manager local"
        )


def describe_champion(name: str) -> Champion | None:
    """The champion and the record of its promotion; None when there is none yet.

    Raises NoSuchChampion for a name that has neither runs nor versions, with the nearest that has.
    """
    require_known(name)
    client = connection.connect()
    version = find_champion(client, name)
    if version is None:
        return None
    records = [r for r in history_of(client, name) if r.version == version.number]
    return Champion(
        name,
        version.number,
        version.digest,
        version.run_id,
        version.created.isoformat(timespec="seconds"),
        version.description,
        records[-1] if records else None,
    )


def history(name: str) -> list[HistoryRecord]:
    """Every promotion, refusal and rollback of a registered model, oldest first.

    Raises NoSuchChampion for a name that has neither runs nor versions, with the nearest that has.
    """
    require_known(name)
    return history_of(connection.connect(), name)


def tell_moves(name: str) -> None:
    """Tell Prefect, where one is configured, that someone moved the alias; a failure is a line on stderr."""
    champion_moves.notice(name, say)


def say(line: str) -> None:
    """A line on stderr."""
    print(f"precis: {line}", file=sys.stderr)
