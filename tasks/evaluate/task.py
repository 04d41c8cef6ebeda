"""Prefect tasks: write and score the summaries of the sealed evaluation set."""

from __future__ import annotations

import dataclasses
from importlib import metadata
from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from tasks import artifacts, child, cuts, device, digest, package, slots, tracking, used
from tasks.errors import EvaluationError
from tasks.evaluate.predict import lead3_predictions, scores_of
from tasks.evaluate.seal import evaluation_digest
from tasks.metrics import LOSS
from tasks.policy import STEP
from tasks.progress import Progress
from tasks.recipe import Recipe
from tasks.records import BaseRef, Cost, DatasetRef, ModelRef, Scores, read_rows
from tasks.table import read_table, write_table
from tasks.tokenizer import tokenizer_digest

NOT_KNOWN = Cost()
WAIT_SECONDS = 3600.0  # for another run that is judging the same model


@task(name="evaluate", task_run_name="evaluate {who}", **STEP)
def evaluate(
    model: ModelRef, dataset: DatasetRef, base: BaseRef, recipe: Recipe, who: str
) -> Scores:
    """A model's scores on this run's evaluation set; known predictions are used again."""
    run = tracking.current()
    seal = _seal(dataset, base, recipe)
    # Other libraries, or a GPU, write other summaries: those are never compared.
    made_with = [metadata.version(name) for name in ("torch", "transformers")]
    key = digest.of_value([model.digest, seal, device.compute(), *made_with])
    if known := run.recall("evaluate", key, Scores, _intact, f"evaluate.{who}"):
        return known
    folder = artifacts.work_folder() / "evaluate" / key[:16]
    table, package_folder = folder / f"{who}.json", artifacts.package(model.path, model.digest)
    with slots.gpu(recipe.evaluation.devices):
        answer = child.run(
            "tasks.evaluate.predict:predict",
            {
                "package": str(package_folder),
                "rows": str(_sealed_rows(dataset)),
                "table": str(table),
                "loss": recipe.gate.metric == LOSS,
                "devices": recipe.evaluation.devices,
            },
            folder,
            on_progress=_Watch(who),
            wait_seconds=WAIT_SECONDS,
        )
    if answer["loss_cut_rows"]:
        get_run_logger().warning(
            f"{who}: {answer['loss_cut_rows']} of {answer['rows']} documents were cut further for the "
            "loss than in serving, so that their references fit the context whole"
        )
    tokenizer = tokenizer_digest(package_folder)
    said, cost = _said(who, answer), used.by_child(folder)
    return _keep(who, key, table, model.digest, seal, answer["seconds"], tokenizer, said, cost)


def _said(who: str, answer: dict[str, Any]) -> dict[str, float]:
    """Whether it was written continuously, as a metric; why not, as a warning. Else nothing."""
    how, _, why = answer["decoding"].partition(": ")
    if why:
        get_run_logger().warning(
            f"{who}: its summaries were written by transformers' generate and not continuously: {why}"
        )
    return {"continuous": float(how == "continuous")} if why or how == "continuous" else {}


@task(name="lead-3", **STEP)
def lead3(dataset: DatasetRef, base: BaseRef, recipe: Recipe) -> Scores:
    """The baseline that copies the first three sentences or turns."""
    run = tracking.current()
    seal = _seal(dataset, base, recipe)
    key = tracking.step_key("evaluate", baseline="lead3", seal=seal)
    if known := run.recall("evaluate", key, Scores, _intact, "evaluate.lead3"):
        return known
    predictions = lead3_predictions(read_rows(_sealed_rows(dataset)))
    table = artifacts.work_folder() / "evaluate" / key[:16] / "lead3.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, predictions)
    return _keep("lead3", key, table, "lead3", seal)


@task(name="package base", **STEP)
def untuned(base: BaseRef, recipe: Recipe) -> ModelRef:
    """The base as it is, with the same prompt and settings as the challenger."""
    settings = package.settings_for(recipe, Path(base.path))
    name = digest.of_value([base.digest, repr(settings)])[:16]
    return package.package_base(base, settings, artifacts.work_folder() / "base" / name)


def _keep(
    who: str,
    key: str,
    table: Path,
    model_digest: str,
    seal: str,
    seconds: float = 0.0,
    tokenizer: str = "",
    more: dict[str, float] | None = None,
    cost: Cost = NOT_KNOWN,
) -> Scores:
    run, predictions = tracking.current(), read_table(table)
    uri = run.log_table(table, "predictions")
    found = scores_of(predictions, model_digest, seal, uri, seconds)
    table_digest = digest.of_file(table)
    scores = dataclasses.replace(found, table_digest=table_digest, tokenizer_digest=tokenizer)
    shown = scores.means | cuts.as_metrics(predictions) | (more or {})
    metrics = {f"{who}/{name}": value for name, value in shown.items()}
    run.record("evaluate", key, scores, metrics | used.as_metrics(who, cost))
    return scores


def _intact(scores: Scores) -> bool:
    return (
        artifacts.readable(scores)
        and digest.of_file(artifacts.fetch(scores.uri)) == scores.table_digest
    )


def _seal(dataset: DatasetRef, base: BaseRef, recipe: Recipe) -> str:
    settings = package.settings_for(recipe, Path(base.path))
    deciding = recipe.gate.metric
    return evaluation_digest(dataset.evaluation_digest, settings, loss=deciding == LOSS)


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
