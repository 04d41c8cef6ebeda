"""The MLflow run behind a flow run, linked both ways with Prefect's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import yaml
from prefect.artifacts import create_link_artifact
from prefect.context import FlowRunContext, TagsContext
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_UI_URL

from flows import champion_moves, model_page, stale_runs
from flows.manifest import manifest
from flows.stack import embedded
from tasks.contracts.recipe import Recipe
from tasks.orchestration import concurrency
from tasks.processes import workspace
from tasks.register.task import remove_leftovers
from tasks.tracking import mlflow_run

OURS = "precis"  # the tag by which automations recognize our flow runs


@contextlib.contextmanager
def tracked_run(recipe: Recipe, again: bool = False) -> Iterator[mlflow_run.Run]:
    """The MLflow run of the current flow run, with recipe and manifest stored before any work.

    `again`: this process has opened and closed it before.
    """
    with bare_run(recipe.name, again) as run:
        _store_recipe(run, recipe)
        yield run


@contextlib.contextmanager
def one_retrain_at_a_time(name: str, if_busy: str) -> Iterator[None]:
    """Hold the model's one retrain slot on the Prefect server; Busy if it is taken and `if_busy` is end.

    An embedded server has only this run: no slot is needed.
    """
    if embedded.is_embedded():
        yield
        return
    with concurrency.sole_retrain(name, wait=if_busy == "wait"):
        yield


@contextlib.contextmanager
def bare_run(name: str, again: bool = False) -> Iterator[mlflow_run.Run]:
    """The MLflow run of the current flow run, for the registered model `name`."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    flow_run = context.flow_run
    flow = context.flow.name if context.flow else ""
    tags = {
        "mlflow.runName": flow_run.name,
        "precis.flow": flow,
        stale_runs.PROCESS: stale_runs.process_name(),
    }
    if (ui := PREFECT_UI_URL.value()) and not embedded.is_embedded():
        link = f"{ui}/runs/flow-run/{flow_run.id}"
        tags |= {"precis.prefect_url": link, "mlflow.note.content": f"[Prefect flow run]({link})"}
    first_try = is_first_try(again)
    with (
        _untagged_tasks(),
        mlflow_run.run_for(name, str(flow_run.id), tags, first_try) as run,
    ):
        stale_runs.close(run.client, run.experiment_id, run.id)
        remove_leftovers(run.client, run.experiment_id)
        if run_page := mlflow_run.run_url(run):
            text = "Parameters, metrics, plots and files of this run."
            create_link_artifact(run_page, "MLflow run", key="mlflow-run", description=text)
        log = get_run_logger().warning
        with (
            model_page.kept(name, flow, log),
            champion_moves.told(name, log, flow, str(flow_run.id)),
        ):
            yield run


def is_first_try(again: bool = False) -> bool:
    """Whether the current flow run has no MLflow run yet. `again`: this process has opened it before."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    # A suspended run that is resumed has run_count 1 too, but has run for a while.
    return context.flow_run.run_count == 1 and not context.flow_run.total_run_time and not again


def _untagged_tasks() -> TagsContext:
    """Take the tag that marks the flow run as ours from its tasks, as in deployed runs.

    Otherwise Prefect asks the server before each task for a concurrency limit of that tag.
    """
    return TagsContext(current_tags=TagsContext.get().current_tags - {OURS})


def _store_recipe(run: mlflow_run.Run, recipe: Recipe) -> None:
    folder = workspace.work_folder() / "runs" / run.id
    folder.mkdir(parents=True, exist_ok=True)
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest(recipe, Path.cwd())))
    run.log_file(folder / "recipe.yaml")
    run.log_file(folder / "manifest.yaml")
    run.log_params(mlflow_run.flat(recipe.model_dump(mode="json", exclude={"name"})))
