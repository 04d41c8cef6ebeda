"""A registered model's page, written to a file: `precis page NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.contracts.errors import ChampionMoved, DataError
from tasks.register.task import (
    Version,
    find_champion,
    history_of,
    require_known,
    trained_by,
    versions_of,
)
from tasks.report.task import ModelPage, VersionRow, render_model_page
from tasks.tracking import connection, making, mlflow_run
from tasks.tracking.history import HistoryRecord


def write_page(name: str, file: Path) -> Path:
    """Write the page of a model; an existing file is replaced. Returns its absolute path.

    Raises NoSuchChampion for a name that nobody knows, DataError where the file cannot be written.
    """
    require_known(name)
    html = render_model_page(page_of(connection.connect(), name))
    try:
        part = file.with_name(f".{file.name}.part")
        part.write_text(html, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error}; name another with --out") from error
    return file.absolute()


def page_of(client: Any, name: str) -> ModelPage:
    """What the page shows, read from MLflow."""
    records = history_of(client, name)
    versions = versions_of(client, name)
    entries = _entries(records, versions)
    champion, problem = None, ""
    try:
        champion = find_champion(client, name)
    except ChampionMoved as moved:
        problem = str(moved)
    rows = []
    for version in versions:
        made = making.find(client, trained_by(client, name, version), version.digest)
        rows.append(
            VersionRow(
                version.number,
                version.digest,
                entries.get(version.number),
                version.rollback_to,
                made,
                mlflow_run.url_of(made.experiment_id, made.run_id) if made.known else None,
            )
        )
    experiment = client.get_experiment_by_name(name)
    without = [r for r in records if r.kind != "rollback" and r.version is None]
    waiting = [r for r in without if r.approval == "waits"]
    urls = {
        record.mlflow_run_id: mlflow_run.url_of(experiment.experiment_id, record.mlflow_run_id)
        for record in without
        if experiment
    }
    return ModelPage(
        name=name,
        champion=champion.number if champion else None,
        since=champion.created.isoformat(timespec="minutes") if champion else "",
        problem=problem,
        versions=rows,
        waiting=waiting,
        refusals=[r for r in without if r not in waiting],
        run_urls={run: url for run, url in urls.items() if url},
        written=datetime.now(UTC).isoformat(sep=" ", timespec="minutes")[:16],
        store=connection.shown_uri(),
    )


def _entries(
    records: Sequence[HistoryRecord], versions: Sequence[Version]
) -> dict[int, HistoryRecord]:
    """Of each version the entry that tells how it came about.

    A rollback that only put the alias back made none: it has its target's number, and is not its entry.
    """
    made_by = {version.number: version.run_id for version in versions}
    return {
        record.version: record
        for record in records
        if record.version is not None
        and (record.kind != "rollback" or record.mlflow_run_id == made_by.get(record.version))
    }
