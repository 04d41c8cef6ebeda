"""Flow check-data: are there enough new training rows to start a retrain? It loads no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from prefect import flow
from prefect.states import Completed, Failed

from flows import home_folder, run_name
from flows.notify import answering
from flows.parameters import OneRecipe, RetrainDeployment
from tasks.contracts import machine_faults
from tasks.contracts.errors import PrecisError, ServerError
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import DatasetRef
from tasks.ingest.task import dataset_of, new_rows
from tasks.register.task import find_champion, trained_by
from tasks.tracking import artifacts, connection

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

STARTED, ALREADY, NOT_ENOUGH = "RETRAIN_STARTED", "ALREADY_STARTED", "NOT_ENOUGH"


@dataclass(frozen=True)
class Checked:
    """The result of a check. `flow_run_id`: of the retrain that these data started, if any."""

    state: str
    message: str
    rows: int  # unseen by the champion
    flow_run_id: str | None = None


@flow(name="check-data", flow_run_name=run_name.typed_or_model, validate_parameters=True)
def check_data(recipe: OneRecipe, deployment: RetrainDeployment = None) -> Any:
    """Start a retrain if data.train holds at least data.min_new_rows that the champion has not seen."""
    home_folder.enter()
    try:
        with machine_faults.as_errors():
            result = run_check(recipe, deployment or f"retrain/{recipe.name}")
    except PrecisError as error:
        return Failed(message=str(error), data=error)
    return Completed(name=result.state, message=result.message, data=result)


def run_check(recipe: Recipe, deployment: str) -> Checked:
    """The flow's body, in the order it happens."""
    try:
        rows, sources = new_rows(recipe, seen(recipe.name))
    finally:
        artifacts.forget_old()
    least = recipe.data.min_new_rows
    if rows < least:
        message = f"{recipe.name}: {rows} new rows of the {least} that start a retrain"
        return Checked(NOT_ENOUGH, message, rows)
    run, is_new = start(deployment, f"{recipe.name}-{sources}", ["precis", f"rows:{rows}"])
    message = f"{recipe.name}: {rows} new rows, at least {least}: "
    if is_new:
        message += f"started {deployment} (run {run.name})"
        return Checked(STARTED, message, rows, str(run.id))
    # That run may have refused the challenger, or failed: the same data are not tried twice.
    message += (
        f"an earlier check of the same data started {deployment} (run {run.name}, {run.state_name}); "
        f"to try them again: prefect deployment run '{deployment}'"
    )
    return Checked(ALREADY, message, rows, str(run.id))


def seen(name: str) -> tuple[DatasetRef, ...]:
    """The data that the champion was trained and judged on; empty when there is no champion."""
    if connection.nothing_yet():
        return ()
    client = connection.connect()
    champion = find_champion(client, name)
    return (dataset_of(client, trained_by(client, name, champion)),) if champion else ()


def start(deployment: str, key: str, tags: list[str]) -> tuple[FlowRun, bool]:
    """Start a deployment unless a run with this idempotency key exists; the run, and whether it is new.

    Does not wait for it. Raises ServerError when there is no such deployment, or no server.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    same_key = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
    with answering(f"{deployment} was not started"):
        with get_client(sync_client=True) as client:
            before = {run.id for run in client.read_flow_runs(flow_run_filter=same_key)}
        try:
            started = run_deployment(
                deployment, timeout=0, as_subflow=False, idempotency_key=key, tags=tags
            )
        except ObjectNotFound as error:
            raise ServerError(
                f"the Prefect server has no deployment {deployment!r}; deploy it (prefect deploy), "
                "or name another as parameter `deployment`"
            ) from error
    run = cast("FlowRun", started)  # not a coroutine: nothing here is async
    return run, run.id not in before
