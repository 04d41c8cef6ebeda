"""Check data: have enough new training rows come to start a retrain? Reads rows, loads no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from prefect import flow
from prefect.states import Completed, Failed

from flows import home_folder
from flows.notify import answering
from flows.parameters import OneRecipe, RetrainDeployment
from tasks.contracts.errors import PrecisError, ServerError
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import DatasetRef
from tasks.ingest.task import dataset_of, new_rows
from tasks.register.task import standing, trained_by
from tasks.tracking import artifacts, connection

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

STARTED, ALREADY, NOT_ENOUGH = "RETRAIN_STARTED", "ALREADY_STARTED", "NOT_ENOUGH"


@dataclass(frozen=True)
class Checked:
    """What a check came to. `flow_run_id`: of the retrain that these data started, if any."""

    state: str
    message: str
    rows: int  # that the champion has not seen
    flow_run_id: str | None = None


@flow(name="check-data", flow_run_name="{recipe.name}", validate_parameters=True)
def check_data(recipe: OneRecipe, deployment: RetrainDeployment = None) -> Any:
    """Start a retrain if data.train holds at least data.min_new_rows that the champion has not seen."""
    home_folder.enter()
    try:
        found = run_check(recipe, deployment or f"retrain/{recipe.name}")
    except PrecisError as error:
        return Failed(message=str(error), data=error)
    return Completed(name=found.state, message=found.message, data=found)


def run_check(recipe: Recipe, deployment: str) -> Checked:
    """The flow's body, in the order it happens."""
    try:
        rows, sources = new_rows(recipe, seen(recipe.name))
    finally:
        artifacts.forget_old()
    least = recipe.data.min_new_rows
    if rows < least:
        said = f"{recipe.name}: {rows} new rows of the {least} that start a retrain"
        return Checked(NOT_ENOUGH, said, rows)
    run, is_new = start(deployment, f"{recipe.name}-{sources}", ["precis", f"rows:{rows}"])
    said = f"{recipe.name}: {rows} new rows, at least {least}: "
    if is_new:
        said += f"started {deployment} (run {run.name})"
        return Checked(STARTED, said, rows, str(run.id))
    # Its run may have refused the challenger, or failed: the same data are not tried twice.
    said += (
        f"an earlier check of the same data started {deployment} (run {run.name}, {run.state_name}); "
        f"to try them again: prefect deployment run '{deployment}'"
    )
    return Checked(ALREADY, said, rows, str(run.id))


def seen(name: str) -> tuple[DatasetRef, ...]:
    """What the champion was trained and judged on; nothing when there is no champion."""
    if connection.nothing_yet():
        return ()
    client = connection.connect()
    champion = standing(client, name)
    return (dataset_of(client, trained_by(client, name, champion)),) if champion else ()


def start(deployment: str, key: str, tags: list[str]) -> tuple[FlowRun, bool]:
    """Start a deployment unless a run with this idempotency key exists; the run, and if it is new.

    Does not wait for it. Raises ServerError when there is no such deployment, or no server.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
    with answering(f"{deployment} was not started"):
        with get_client(sync_client=True) as client:
            before = {run.id for run in client.read_flow_runs(flow_run_filter=wanted)}
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
