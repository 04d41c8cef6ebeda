"""The history of a registered model, with what its versions hold: no champion's entry goes with its run."""

from __future__ import annotations

from typing import Any

from tasks.register import claims
from tasks.tracking import history


def history_of(client: Any, name: str) -> list[history.HistoryRecord]:
    """The history, with the versions that the registry says took effect.

    A champion's entry is on its version too: deleting runs takes none away.
    """
    took_effect = [
        history.TookEffect(v.number, v.run_id, v.record, _from_version(name, v))
        for v in claims.versions(client, name)
        if v.finished
    ]
    return history.read(client, name, took_effect)


def _from_version(name: str, version: claims.Version) -> history.HistoryRecord:
    """What a version itself tells of its promotion, where its run and its entry are gone."""
    return history.HistoryRecord(
        kind="rollback" if version.rollback_to else "promotion",
        time=version.created.isoformat(timespec="milliseconds"),
        name=name,
        verdict=None if version.rollback_to else "PROMOTE",
        reasons=(version.description, f"its MLflow run {version.run_id} has no entry any more"),
        version=version.number,
        opponent_version=version.succeeds or None,
        model_digest=version.digest,
        mlflow_run_id=version.run_id,
    )
