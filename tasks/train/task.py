"""Prefect task: train the adapter in a process group of its own, watched from here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from tasks.contracts import digest
from tasks.contracts.errors import TrainingError
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import AdapterRef, Cost, DatasetRef
from tasks.costs import step_costs
from tasks.models.prepared_base import PreparedBase
from tasks.orchestration import concurrency
from tasks.orchestration.progress import Progress
from tasks.orchestration.task_options import STEP
from tasks.processes import resource_usage, step_process, workspace
from tasks.tracking import artifacts, mlflow_run, step_cache
from tasks.train import launch
from tasks.train.checkpoints import local, store

REPORTED = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gib")
WAIT_SECONDS = 300.0  # for a killed run's trainer, which may still be writing a checkpoint


@task(name="train", **STEP)
def train(dataset: DatasetRef, base: PreparedBase, recipe: Recipe) -> AdapterRef:
    """The LoRA adapter for these rows; resumes from the last checkpoint of the same job."""
    run, key = mlflow_run.current(), step_key(dataset, base, recipe)
    if cached := step_cache.recall(run, "train", key, AdapterRef, _intact):
        return cached
    # Only now are the rows known; a run that takes its adapter from the cache gets no forecast.
    report = artifacts.fetch(dataset.uri) / "report.json"
    run.add_tags_to_next_write(step_costs.forecast_tags(recipe, base, report))
    with concurrency.gpu(recipe.training.devices):
        answer = step_process.run(
            "tasks.train.qlora:train",
            {
                "rows": str(artifacts.fetch(dataset.uri) / "train.jsonl"),
                "base": base.as_json(),
                "recipe": recipe.model_dump(mode="json"),
                "folder": str(workspace.work_folder() / "train" / key[:16] / "job"),
            },
            workspace.work_folder() / "train" / key[:16],
            timeout_seconds=recipe.training.timeout_hours * 3600,
            on_progress=_ProgressReporter(),
            wait_seconds=WAIT_SECONDS,
        )
    uri = run.log_folder(Path(answer["adapter"]), "adapter")
    adapter = AdapterRef(uri, answer["digest"], base.digest, answer["metrics"])
    metrics = {f"train/{name}": value for name, value in adapter.metrics.items()}
    step_cache.record(
        run,
        "train",
        key,
        adapter,
        metrics | resource_usage.as_metrics("train", _cost(key, adapter)),
    )
    if recipe.training.checkpoint_store:
        _remove_checkpoints(recipe.training.checkpoint_store, answer["job"])
    return adapter


def step_key(dataset: DatasetRef, base: PreparedBase, recipe: Recipe) -> str:
    """The digest of all that an adapter's weights depend on."""
    return step_cache.step_key(
        "train",
        rows=dataset.train_digest,
        base=base.digest,
        quantization=recipe.base.quantization,
        adapter=recipe.adapter.model_dump(mode="json"),
        training=local.deciding_settings(recipe.training),
        settings=repr(base.settings),
        max_row_tokens=base.max_row_tokens,
        **base.context_limits,
    )


def preflight(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Lines about training's devices and checkpoint store for `precis check`, and what would stop it."""
    facts, problems = launch.facts(recipe.training), launch.problems(recipe.training)
    if recipe.training.checkpoint_store:
        try:
            facts.append(store.check(recipe.training.checkpoint_store))
        except TrainingError as error:
            problems.append(str(error))
    return facts, problems


def _cost(key: str, adapter: AdapterRef) -> Cost:
    """What training took, the parts before a resume included."""
    last = resource_usage.by_child(workspace.work_folder() / "train" / key[:16])
    seconds = max(last.seconds or 0.0, adapter.metrics["seconds"])
    return Cost(seconds, adapter.metrics["peak_memory_gib"])


def _remove_checkpoints(place: str, job: str) -> None:
    # Only now: until the adapter is stored in MLflow, losing this machine would lose the training.
    try:
        store.remove_job(place, job)
    except TrainingError as error:
        get_run_logger().warning(f"the finished job's checkpoints stay in the store: {error}")


def adapter_is_stored(adapter: AdapterRef) -> bool:
    """Whether an adapter's files are there, and unchanged."""
    return artifacts.intact(adapter, _intact)


def _intact(adapter: AdapterRef) -> bool:
    return (
        artifacts.readable(adapter)
        and digest.of_folder(artifacts.fetch(adapter.uri)) == adapter.digest
    )


class _ProgressReporter:
    """Passes the child's progress on to the log, Prefect and MLflow."""

    def __init__(self) -> None:
        self.run = mlflow_run.current()
        self.log = get_run_logger()
        self.bar = Progress("training")

    def __call__(self, line: dict[str, Any]) -> None:
        if line.get("kind") == "note":
            self.log.log(logging.WARNING if line["failed"] else logging.INFO, line["text"])
        if line.get("kind") != "train":
            return
        step, total = int(line["step"]), int(line["total_steps"])
        values = {name: float(line[name]) for name in REPORTED if line.get(name) is not None}
        self.run.log_metrics(values, step=step)
        self.bar.update(step / max(total, 1))
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.log.info(f"step {step}/{total}  {shown}")
