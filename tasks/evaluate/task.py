"""Prefect tasks: generate and score the summaries of the sealed evaluation set.

Over 250 lines: the tasks of one step share their helpers.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.contracts import digest, truncation
from tasks.contracts.errors import EvaluationError
from tasks.contracts.metrics import BERTSCORE, LOSS, MODEL_BASED, NLI, model_of
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import Cost, DatasetRef, MetricModel, ModelRef, Scores, read_rows
from tasks.costs.preflight import gpus_for
from tasks.evaluate import metric_model, model_metrics
from tasks.evaluate.predict import lead3_predictions, put_together, scores_of
from tasks.evaluate.scores import Scoring
from tasks.evaluate.seal import evaluation_digest
from tasks.models import package
from tasks.models.prepared_base import PreparedBase
from tasks.models.safetensors_headers import parameter_count
from tasks.models.tokenizer_digest import tokenizer_digest
from tasks.orchestration import cluster_worker, concurrency, task_runners
from tasks.orchestration.progress import Progress
from tasks.orchestration.task_options import STEP
from tasks.processes import resource_usage, step_process, workspace
from tasks.tracking import artifacts, checked_package, mlflow_run, step_cache
from tasks.tracking.predictions_table import read_table, write_table

NOT_KNOWN = Cost()
# What is counted of texts that a metric's model reads in parts: never outputs (see nli.py, bertscore.py).
SPLIT = {NLI: "sentences of documents", BERTSCORE: "references"}
WAIT_SECONDS = 3600.0  # for another run that is judging the same model


@task(name="evaluate", task_run_name="evaluate {who}", **STEP)
def evaluate(
    model: ModelRef, dataset: DatasetRef, base: PreparedBase, recipe: Recipe, who: str
) -> Scores:
    """A model's scores on this run's evaluation set; stored predictions are used again."""
    run = mlflow_run.current()
    seal = _seal(dataset, base, recipe)
    key = digest.of_value([model.digest, seal, *cluster_worker.made_with()])
    if cached := step_cache.recall(run, "evaluate", key, Scores, _intact, f"evaluate.{who}"):
        return cached
    folder = workspace.work_folder() / "evaluate" / key[:16]
    table = folder / f"{who}.json"
    package_folder = checked_package.package(model.path, model.digest)
    with concurrency.gpu(recipe.evaluation.devices, gpus_for(2 * parameter_count(package_folder))):
        if recipe.evaluation.cluster:
            answer, cost = _on_cluster(model, dataset, recipe, who, table)
        else:
            answer, cost = _on_this_machine(package_folder, dataset, recipe, who, table)
    if answer["loss_cut_rows"]:
        get_run_logger().warning(
            f"{who}: {answer['loss_cut_rows']} of {answer['rows']} documents were cut further for the "
            "loss than in serving, so that their references fit the context whole"
        )
    tokenizer = tokenizer_digest(package_folder)
    decoding = _decoding_metric(who, answer, warn=recipe.evaluation.decoding == "continuous")
    # Fresh rows decide nothing: they tell whether the champion has decayed.
    sealed = recipe.gate.feedback == "sealed" and who != "fresh"
    return _record(
        who, key, table, model.digest, seal, answer["seconds"], tokenizer, decoding, cost, sealed
    )


def _on_this_machine(
    package_folder: Path, dataset: DatasetRef, recipe: Recipe, who: str, table: Path
) -> tuple[dict[str, Any], Cost]:
    """Write the table by processes on this machine: what was measured, and its cost."""
    answer = step_process.run(
        "tasks.evaluate.predict:predict",
        {
            "package": str(package_folder),
            "rows": str(_sealed_rows(dataset)),
            "table": str(table),
            "loss": recipe.gate.metric == LOSS,
            "devices": recipe.evaluation.devices,
            "scoring": dataclasses.asdict(_scoring(recipe)),
        },
        table.parent,
        on_progress=_Watch(who),
        wait_seconds=WAIT_SECONDS,
    )
    return answer, resource_usage.by_child(table.parent)


def _on_cluster(
    model: ModelRef, dataset: DatasetRef, recipe: Recipe, who: str, table: Path
) -> tuple[dict[str, Any], Cost]:
    """Write the same table by workers of a cluster, a part of the batches each."""
    where, count = str(recipe.evaluation.cluster), recipe.evaluation.devices
    loss, rows = recipe.gate.metric == LOSS, _sealed_rows(dataset)
    watch, started = _Watch(who), time.monotonic()
    common = {
        "model": model,
        "dataset": dataset,
        "who": who,
        "loss": loss,
        "name": table.parent.name,
        "origin": cluster_worker.origin(),
        "threads": task_runners.threads(where, count),
        "of": count,
    }
    calls = [common | {"number": number} for number in range(1, count + 1)]
    written = 0

    def add(part: dict[str, Any]) -> None:
        nonlocal written
        written += len(part["outputs"])
        watch({"done": written, "total": dataset.evaluation_rows})

    parts = task_runners.run(where, share, calls, "evaluation.cluster", add)
    answer = put_together(parts, rows, table, loss, _scoring(recipe))
    memory_gib = [part["memory_gib"] for part in parts if part["memory_gib"] is not None]
    return answer, Cost(time.monotonic() - started, max(memory_gib, default=None))


@task(
    name="evaluate share",
    task_run_name="evaluate {who}, share {number} of {of}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def share(
    model: ModelRef,
    dataset: DatasetRef,
    who: str,
    loss: bool,
    name: str,
    origin: cluster_worker.Origin,
    threads: int | None,
    number: int,
    of: int,
) -> dict[str, Any]:
    """On a worker: what `predict.write` returns for one share, in a process of its own, on its own GPU.

    Not retried: if its process is killed, the whole evaluation is tried again.
    """
    origin.join()
    folder = workspace.work_folder() / "evaluate" / name / f"share-{number}-of-{of}"
    part: dict[str, Any] = step_process.run(
        "tasks.evaluate.predict:write",
        {
            "package": str(cluster_worker.package(model.path, model.digest)),
            "rows": str(_sealed_rows(dataset)),
            "loss": loss,
            "part": number - 1,
            "parts": of,
        },
        folder,
        on_progress=_Watch(f"{who}-share-{number}"),
        threads=threads,
        wait_seconds=WAIT_SECONDS,
        halt=cluster_worker.cancelled(),
    )
    return part | {"memory_gib": resource_usage.by_child(folder).memory_gib}


def preflight(recipe: Recipe) -> list[str]:
    """Problems that would stop an evaluation on a cluster or a metric's model, found before a run."""
    where, count = recipe.evaluation.cluster, recipe.evaluation.devices
    found = task_runners.problems("evaluation.cluster", where, count) if where else []
    return [*found, *model_metrics.problems(recipe.gate)]


def require_metric_models(recipe: Recipe) -> None:
    """Raise EvaluationError, before anything is trained, for a metric's model that cannot be used."""
    if problems := model_metrics.problems(recipe.gate):
        raise EvaluationError.of(problems)


def _decoding_metric(who: str, answer: dict[str, Any], *, warn: bool) -> dict[str, float]:
    """The metric `continuous` where decoding was, or should have been; why it was not goes to the log."""
    how, _, why = answer["decoding"].partition(": ")
    if why:
        get_run_logger().log(
            logging.WARNING if warn else logging.INFO,
            f"{who}: decoded by transformers' generate and not continuously: {why}",
        )
    return {"continuous": float(how == "continuous")} if why or how == "continuous" else {}


def add_model_metrics(scores: Scores, recipe: Recipe, who: str) -> Scores:
    """The scores with NLI and BERTScore of each row, where the recipe names their models."""
    for name in MODEL_BASED:
        if folder := model_of(recipe.gate, name):
            scores = add_metric(scores, recipe, who, name, Path(folder))
    return scores


@task(name="model metric", task_run_name="{name} {who}", **STEP)
def add_metric(scores: Scores, recipe: Recipe, who: str, name: str, folder: Path) -> Scores:
    """On this machine, also where summaries are generated on a cluster; stored numbers are used again."""
    run, settings = mlflow_run.current(), model_metrics.settings(recipe, name)
    used = metric_model.folder_digest(folder)
    made_with = [name, used, settings, *cluster_worker.made_with()]
    with_model = MetricModel(used, step_cache.step_key("evaluate", made_with=made_with))
    known = [scores.table_digest, scores.model_digest, scores.evaluation_digest]
    key = digest.of_value([with_model.key, *known])
    if cached := step_cache.recall(run, "evaluate", key, Scores, _intact, f"{name}.{who}"):
        return cached
    target = workspace.work_folder() / name / key[:16] / f"{who}-{name}.json"
    means = _write_metric(scores, who, name, target, {"folder": str(folder)} | settings)
    sealed = recipe.gate.feedback == "sealed"
    added = dataclasses.replace(
        scores,
        uri=_log_predictions(target, sealed),
        table_digest=digest.of_file(target),
        metric_models=scores.metric_models | {name: with_model},
    )
    cost = resource_usage.as_metrics(f"{who}-{name}", resource_usage.by_child(target.parent))
    step_cache.record(run, "evaluate", key, added, cost | ({} if sealed else means))
    return added


def _write_metric(
    scores: Scores, who: str, name: str, target: Path, settings: dict[str, Any]
) -> dict[str, float]:
    """Write the table with one more column: the metric's mean, as a metric of the run."""
    payload = {"table": str(artifacts.fetch(scores.uri)), "target": str(target), "name": name}
    with concurrency.gpu(1):
        answer = step_process.run(
            "tasks.evaluate.model_metrics:write",
            payload | settings,
            target.parent,
            on_progress=_Watch(f"{who}-{name}"),
            wait_seconds=WAIT_SECONDS,
        )
    if answer["split"]:
        get_run_logger().info(
            f"{who}: {answer['split']} {SPLIT[name]} are longer than gate.{name}_model reads at once, and "
            "were read in parts, as longer outputs are"
        )
    return {f"{who}/{name}": answer["mean"]}


@task(name="lead-3", **STEP)
def lead3(dataset: DatasetRef, base: PreparedBase, recipe: Recipe) -> Scores:
    """The baseline that copies the first three sentences or turns."""
    run = mlflow_run.current()
    seal = _seal(dataset, base, recipe)
    key = step_cache.step_key("evaluate", baseline="lead3", seal=seal)
    if cached := step_cache.recall(run, "evaluate", key, Scores, _intact, "evaluate.lead3"):
        return cached
    predictions = lead3_predictions(read_rows(_sealed_rows(dataset)), _scoring(recipe))
    table = workspace.work_folder() / "evaluate" / key[:16] / "lead3.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, predictions)
    sealed = recipe.gate.feedback == "sealed"
    return _record("lead3", key, table, "lead3", seal, sealed=sealed)


@task(name="package base", **STEP)
def untuned(base: PreparedBase) -> ModelRef:
    """The base as it is, with the same prompt and settings as the challenger."""
    name = digest.of_value([base.digest, repr(base.settings)])[:16]
    return package.package_base(base, base.settings, workspace.work_folder() / "base" / name)


def _record(
    who: str,
    key: str,
    table: Path,
    model_digest: str,
    seal: str,
    seconds: float = 0.0,
    tokenizer: str = "",
    more: dict[str, float] | None = None,
    cost: Cost = NOT_KNOWN,
    sealed: bool = False,
) -> Scores:
    """Store a table, and log what was measured; of sealed rows no score, and the table out of sight.

    The record is a run's tag, and may be recalled under either kind of feedback, so it holds no score.
    """
    run, predictions = mlflow_run.current(), read_table(table)
    uri = _log_predictions(table, sealed)
    measured = scores_of(predictions, model_digest, seal, uri, seconds)
    scores = dataclasses.replace(
        measured,
        means={},
        finished_share=None,
        empty_share=None,
        length_ratio=None,
        table_digest=digest.of_file(table),
        tokenizer_digest=tokenizer,
    )
    means = {} if sealed else measured.means
    values = means | truncation.as_metrics(predictions) | (more or {})
    metrics = {f"{who}/{name}": value for name, value in values.items()}
    step_cache.record(run, "evaluate", key, scores, metrics | resource_usage.as_metrics(who, cost))
    return scores


def _log_predictions(table: Path, sealed: bool) -> str:
    run = mlflow_run.current()
    if sealed:
        return run.log_file(table, f"{mlflow_run.SEALED}/predictions")
    return run.log_table(table, "predictions")


def _intact(scores: Scores) -> bool:
    return (
        artifacts.readable(scores)
        and digest.of_file(artifacts.fetch(scores.uri)) == scores.table_digest
    )


def _seal(dataset: DatasetRef, base: PreparedBase, recipe: Recipe) -> str:
    deciding = recipe.gate.metric
    return evaluation_digest(
        dataset.evaluation_digest, base.settings, scoring=_scoring(recipe), loss=deciding == LOSS
    )


def _scoring(recipe: Recipe) -> Scoring:
    return Scoring(recipe.evaluation.words, recipe.evaluation.references)


def _sealed_rows(dataset: DatasetRef) -> Path:
    path = artifacts.fetch(dataset.uri) / "evaluation.jsonl"
    if digest.of_file(path) != dataset.evaluation_digest:
        raise EvaluationError(
            f"{path} was changed after ingest (its digest is not {dataset.evaluation_digest[:16]}...); "
            "run again with the original data"
        )
    return path


class _Watch:
    """Progress of generation, to the terminal and Prefect."""

    def __init__(self, who: str) -> None:
        self.who, self.log = who, get_run_logger()
        self.bar = Progress(f"evaluate-{who}")

    def __call__(self, line: dict[str, Any]) -> None:
        done, total = int(line["done"]), int(line["total"])
        self.bar.update(done / total)
        self.log.info(f"{self.who}: {done}/{total} {line.get('what', 'summaries')}")
