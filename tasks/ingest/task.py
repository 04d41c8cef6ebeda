"""Prefect tasks: find the base, make the run's dataset.

Over 250 lines: the tasks of one step share their helpers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from prefect import task
from prefect.logging import get_run_logger

from tasks.contracts import digest
from tasks.contracts.errors import RecipeError, RegistryError
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import DatasetRef
from tasks.contracts.similar_documents import DocumentIndex
from tasks.contracts.slice_labels import LABELS, labelled
from tasks.ingest.champion_rows import seen_rows_of
from tasks.ingest.column_facts import column_facts
from tasks.ingest.fresh import KEY
from tasks.ingest.gathering import contents_of
from tasks.ingest.learned_rows import LearnedRow, rows_about, rows_with_id
from tasks.ingest.prepare import EVALUATION, REPORT, TRAIN, look
from tasks.ingest.seen_rows import lines
from tasks.ingest.sources import source_digest
from tasks.ingest.unseen_rows import count_new
from tasks.models import find_base as bases
from tasks.models.prepared_base import PreparedBase
from tasks.orchestration.task_options import STEP
from tasks.processes import resource_usage, step_process, workspace
from tasks.tracking import artifacts, dataset_inputs, mlflow_run, step_cache

__all__ = [
    "LearnedRow",
    "dataset_of",
    "document_forms",
    "find_base",
    "forms_of",
    "ingest",
    "ingest_fresh",
    "learned_rows",
    "new_rows",
    "preflight",
    "require_fresh",
    "rows_of",
    "seen_by_champion",
    "seen_lines",
]

ROWS = ("train.jsonl", "evaluation.jsonl")
# Settings of `data` that decide what the fresh rows are.
FRESH_DATA = {
    "fields",
    "evaluation_fields",
    "near_duplicate_jaccard",
    "near_duplicate_containment",
    "max_rejected_share",
    "max_row_bytes",
    "encoding",
}


@task(name="find base", **STEP)
def find_base(recipe: Recipe) -> PreparedBase:
    """The recipe's base model on this machine, digested, with the settings that it is used with."""
    base = bases.find_base(recipe)
    for line in bases.left_out(base.path):
        get_run_logger().info(line)
    return base


@task(name="ingest", **STEP)
def ingest(recipe: Recipe, base: PreparedBase) -> DatasetRef:
    """Canonical train and evaluation rows of this run's data, stored with the run."""
    run = mlflow_run.current()
    key = step_cache.step_key(
        "ingest",
        sources=source_digest(recipe.data),
        data=recipe.data.model_dump(mode="json", exclude={"min_new_rows"}),
        evaluation_fields=_evaluation_fields(recipe),
        prompt=recipe.prompt.model_dump(mode="json"),
        settings=dataclasses.asdict(base.settings),
        base=base.digest,  # its tokenizer measures the rows
        **_label_columns(recipe),
    )
    if cached := step_cache.recall(run, "ingest", key, DatasetRef, _intact):
        dataset_inputs.log(run, recipe.name, cached)
        return cached
    # A folder of this run alone: two runs over the same data would write into each other's files.
    folder = workspace.work_folder() / "data" / run.id
    work = workspace.work_folder() / "ingest" / run.id
    local = _in_step("rows", recipe, base, folder, work)
    cost = resource_usage.as_metrics("ingest", resource_usage.by_child(work))
    dataset = dataclasses.replace(local, uri=run.log_folder(folder, "dataset"))
    step_cache.record(run, "ingest", key, dataset, cost)
    dataset_inputs.log(run, recipe.name, dataset)
    get_run_logger().info(
        f"{dataset.train_rows} training rows, {dataset.evaluation_rows} evaluation rows, "
        f"{dataset.rejected} rejected"
    )
    report = json.loads((folder / REPORT).read_text())
    for fact in column_facts(report):
        get_run_logger().info(fact)
    for warning in [*report["remarks"], *_truncation_warnings(report)]:
        get_run_logger().warning(warning)
    return dataset


def document_forms(dataset: DatasetRef) -> dict[str, int]:
    """How many evaluation rows of a dataset are texts, several texts or conversations."""
    return forms_of(json.loads((artifacts.fetch(dataset.uri) / REPORT).read_text()))


def forms_of(report: Mapping[str, Any]) -> dict[str, int]:
    """The same from its data report; empty for one of schema 1, which did not count them."""
    forms: dict[str, int] = report.get("evaluation", {}).get("document_forms", {})
    return forms


@task(name="ingest fresh", **STEP)
def ingest_fresh(recipe: Recipe, base: PreparedBase, seen: tuple[DatasetRef, ...]) -> DatasetRef:
    """Rows of evaluation.fresh about documents in none of the datasets `seen`, stored with the run.

    Raises RecipeError when the recipe names none.
    """
    run = mlflow_run.current()
    fresh, data = require_fresh(recipe), recipe.data
    key = step_cache.step_key(
        "ingest",
        fresh=contents_of(KEY, fresh, data.evaluation_split, data),
        seen=sorted({dataset.digest for dataset in seen}),
        data=data.model_dump(mode="json", include=FRESH_DATA),
        evaluation_fields=_evaluation_fields(recipe),
        prompt=recipe.prompt.model_dump(mode="json"),
        settings=dataclasses.asdict(base.settings),
        base=base.digest,
        **_label_columns(recipe),
    )
    if cached := step_cache.recall(run, "fresh", key, DatasetRef, _intact):
        return cached
    folder = workspace.work_folder() / "fresh" / run.id
    work = workspace.work_folder() / "ingest" / f"{run.id}-fresh"
    files = [str(file) for file in rows_of(seen)]
    local = _in_step("fresh_rows", recipe, base, folder, work, fresh=fresh, seen=files)
    dataset = dataclasses.replace(local, uri=run.log_folder(folder, "fresh"))
    step_cache.record(run, "fresh", key, dataset)
    get_run_logger().info(f"{dataset.evaluation_rows} fresh rows, {dataset.rejected} rejected")
    return dataset


def _in_step(
    function: str, recipe: Recipe, base: PreparedBase, folder: Path, work: Path, **more: Any
) -> DatasetRef:
    payload = {"recipe": recipe.model_dump(mode="json"), "base": base.as_json(), **more}
    answer = step_process.run(
        f"tasks.ingest.step:{function}", payload | {"folder": str(folder)}, work
    )
    return DatasetRef(**answer)


def _evaluation_fields(recipe: Recipe) -> dict[str, Any]:
    # As they are used: which of `fields` they replace is decided in recipe.py, whose code is in no key.
    return recipe.data.fields_of_evaluation.model_dump(mode="json")


def _label_columns(recipe: Recipe) -> dict[str, Any]:
    # Only where there are any, so that the keys of other recipes stay what they are.
    names = labelled(recipe.gate.slices)
    return {"slices": names} if names else {}


def require_fresh(recipe: Recipe) -> str:
    """The recipe's fresh data. Raises RecipeError when it names none."""
    if recipe.evaluation.fresh is None:
        raise RecipeError(
            f"{KEY} of recipe {recipe.name!r} is not set: there is nothing newer to score the "
            "champion on; name labelled rows that came after data.evaluation"
        )
    return recipe.evaluation.fresh


@task(name="new rows", **STEP)
def new_rows(recipe: Recipe, seen: tuple[DatasetRef, ...]) -> tuple[int, str]:
    """Training rows in none of the datasets `seen`, and the digest of what the sources hold."""
    # Digested before they are read: rows that arrive in between are counted now, and the next check sees
    # another digest.
    contents = source_digest(recipe.data)
    return count_new(recipe.data, recipe.prompt, rows_of(seen), recipe.gate.slices), contents


@task(name="champion's training rows", **STEP)
def seen_by_champion(
    dataset: DatasetRef, champion_version: int, trained_by_run: str, recipe: Recipe
) -> tuple[str, ...]:
    """What to know of evaluation rows that the champion was trained on: none, or a sentence.

    A sentence too where it cannot be told, since the champion's training rows are gone.
    """
    run, champion = mlflow_run.current(), f"champion v{champion_version}"
    try:
        training_rows = artifacts.fetch(dataset_of(run.client, trained_by_run).uri) / TRAIN
    except RegistryError as error:
        remark = f"not known: whether {champion} was trained on evaluation rows: {error}"
        get_run_logger().warning(remark)
        return (remark,)
    data = recipe.data
    index = DocumentIndex(data.near_duplicate_jaccard, data.near_duplicate_containment)
    evaluation_rows = artifacts.fetch(dataset.uri) / EVALUATION
    found = seen_rows_of(evaluation_rows, training_rows, index)
    run.write(metrics={"evaluation/rows_seen_by_champion": float(found.seen)})
    if remark := found.remark(champion):
        get_run_logger().warning(remark)
        return (remark,)
    get_run_logger().info(f"no evaluation row is about a document that {champion} was trained on")
    return ()


def learned_rows(
    dataset: DatasetRef, row_id: str | None, document: str | None, like: tuple[float, float]
) -> list[LearnedRow]:
    """The training rows of a dataset with this id, or about a document like this one.

    `like`: from what similarity and containment on. Raises RegistryError when the rows are gone, or were
    changed.
    """
    if not artifacts.intact(dataset, _intact):
        raise RegistryError(f"the rows in {dataset.uri} are gone, or were changed; restore them")
    train = artifacts.fetch(dataset.uri) / TRAIN
    if row_id is not None:
        return rows_with_id(train, row_id)
    return rows_about(train, str(document), *like)


def rows_of(datasets: tuple[DatasetRef, ...]) -> list[Path]:
    """The files of canonical rows of these datasets, on this machine."""
    return [artifacts.fetch(dataset.uri) / name for dataset in datasets for name in ROWS]


def dataset_of(client: Any, run_id: str) -> DatasetRef:
    """The dataset that a run ingested. Raises RegistryError when it is gone, or was changed."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise RegistryError(f"MLflow run {run_id} cannot be read: {error}; restore it") from error
    recorded = step_cache.results_of(run, "ingest", DatasetRef)
    for dataset in recorded:
        if artifacts.intact(dataset, _intact):
            return dataset
    problem = "are gone, or were changed" if recorded else "were never stored"
    raise RegistryError(
        f"the rows that MLflow run {run_id} trained on {problem}: it is not known what its model has "
        "seen; restore the run's artifact folder `dataset`, or promote a new champion"
    )


def rows_are_stored(dataset: DatasetRef) -> bool:
    """Whether the rows of a dataset are there, and unchanged."""
    return artifacts.intact(dataset, _intact)


def _intact(dataset: DatasetRef) -> bool:
    if not artifacts.readable(dataset):
        return False
    folder = artifacts.fetch(dataset.uri)
    digests = (dataset.train_digest, dataset.evaluation_digest, dataset.labels_digest)
    recorded = dict(zip((*ROWS, LABELS), digests, strict=True))
    return all(
        (folder / name).is_file() and digest.of_file(folder / name) == file_digest
        for name, file_digest in recorded.items()
        if file_digest  # fresh rows have no training split, and labels only where gate.slices needs them
    )


def _truncation_warnings(report: dict[str, Any]) -> list[str]:
    """What does not fit, a line a split: prompts that are cut or read in parts, and references longer
    than a summary may be.
    """
    warnings = []
    for split in ("train", "evaluation"):
        in_parts = "prompts_in_parts" in report[split]
        prompts = report[split]["prompts_in_parts" if in_parts else "truncated_prompts"]
        summaries = report[split]["summaries_over_max_new_tokens"]
        if prompts["count"] or summaries["count"]:
            warnings.append(
                f"{split}: {prompts['count']} of {report[split]['rows']} prompts "
                f"{'read in parts of at most' if in_parts else 'cut to'} {prompts['limit']} "
                f"tokens, {summaries['count']} references longer than max_new_tokens "
                f"{summaries['limit']}"
            )
    return warnings


def preflight(
    recipe: Recipe,
    base: PreparedBase | None,
    shown: int = 0,
    with_evaluation: Callable[[Path], object] | None = None,
) -> tuple[list[str], list[str], dict[str, Any]]:
    """What `precis check` says of the data: facts, problems that would stop a run, and the data report.

    The report is empty when there are problems; else it shows `shown` rows as the model sees them, and
    `with_evaluation` is called with the file of evaluation rows, which is then removed.
    """
    settings, folder = (base.settings, base.path) if base else (None, None)
    built = look(
        recipe.data,
        recipe.prompt,
        settings,
        folder,
        shown,
        with_evaluation,
        recipe.gate.slices,
    )
    counts = ", ".join(f"{n} {name}" for name, n in built.counts.items())
    facts = [f"data: {counts}"] if counts else []
    facts += column_facts(built.report)
    return [*facts, *built.report.get("remarks", [])], built.problems, built.report


def seen_lines(report: dict[str, Any]) -> list[str]:
    """A data report's rows as the model sees them, for a terminal."""
    return lines(report.get("seen_rows", []))
