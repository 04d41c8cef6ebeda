"""A registered model's page: `precis page NAME` writes it to a file; flows keep it in MLflow and Prefect."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.contracts.errors import ChampionMoved, DataError
from tasks.register.task import (
    Version,
    find_champion,
    history_of,
    link_page,
    require_known,
    trained_by,
    verified_lines,
    versions_of,
)
from tasks.report.task import ModelPage, VersionRow, keep_page, render_model_page
from tasks.tracking import connection, making, mlflow_run, page_run
from tasks.tracking.history import HistoryRecord

CHANGES = ("retrain", "rollback")  # flows that may change the champion or the history


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


@contextlib.contextmanager
def kept(name: str, flow: str, log: Callable[[str], None]) -> Iterator[None]:
    """Keep the page up to date after a flow that may have changed the champion or the history.

    A failure of this is logged: what the flow did stands, and the next one brings the page up to date.
    """
    goes_on = None
    try:
        yield
    except mlflow_run.GoesOnLater as ends:  # what waits for approval is on the page
        goes_on = ends
    if flow in CHANGES:
        try:
            publish(mlflow_run.current().client, name)
        except Exception as error:  # noqa: BLE001 - see above
            log(f"{name}: its page could not be brought up to date: {error}")
    if goes_on:
        raise goes_on


def publish(client: Any, name: str) -> str | None:
    """Store the page in MLflow, as a Prefect artifact, and link it from the model's description.

    The registry is read again after that, until it tells what was stored: another run that stored its page
    meanwhile had read an earlier state, or a later one, and of all the last one to store stores the latest.
    Returns its address; None where nothing of it has changed. Raises PrecisError or MlflowException.
    """
    address = None
    page, stored = page_of(client, name), ""
    experiment = client.get_experiment_by_name(name)
    run = page_run.of_model(client, name, experiment.experiment_id)
    link_page(client, name, page_run.LINK.format(run=run))
    while (content := _content(page)) != (stored or run.content):
        address = keep_page(client, run, page, content)
        page, stored = page_of(client, name), content
    return address


def _content(page: ModelPage) -> str:
    """A digest of what the page tells."""
    return page_run.digest_of(render_model_page(replace(page, written="")))


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
        since=f"{champion.created:%Y-%m-%d %H:%M} UTC" if champion else "",
        problem=problem,
        versions=rows,
        waiting=waiting,
        refusals=[r for r in without if r not in waiting],
        run_urls={run: url for run, url in urls.items() if url},
        verified=verified_lines(client, name, champion) if champion else (),
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
