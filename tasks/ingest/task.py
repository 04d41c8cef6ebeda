"""Prefect tasks: find the base, make the run's dataset."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from tasks import artifacts, digest, package, tracking
from tasks.ingest.prepare import REPORT, prepare, problems, source_digest
from tasks.policy import STEP
from tasks.recipe import Base, Recipe
from tasks.records import BaseRef, DatasetRef


@task(name="find base", **STEP)
def find_base(base: Base) -> BaseRef:
    """The base model on this machine, digested."""
    return package.find_base(base)


@task(name="ingest", **STEP)
def ingest(recipe: Recipe, base: BaseRef) -> DatasetRef:
    """Canonical train and evaluation rows of this run's data, stored with the run."""
    run = tracking.current()
    settings = package.settings_for(recipe, Path(base.path))
    key = tracking.step_key(
        "ingest",
        sources=source_digest(recipe.data),
        data=recipe.data.model_dump(mode="json"),
        prompt=recipe.prompt.model_dump(mode="json"),
        settings=dataclasses.asdict(settings),
        base=base.digest,  # its tokenizer measures the rows
    )
    if known := run.recall("ingest", key, DatasetRef, _intact):
        return known
    # A folder of this run alone: two runs over the same data would write into each other's files.
    folder = artifacts.work_folder() / "data" / run.id
    made = prepare(recipe.data, recipe.prompt, settings, Path(base.path), folder)
    dataset = dataclasses.replace(made, uri=run.log_folder(folder, "dataset"))
    run.record("ingest", key, dataset)
    get_run_logger().info(
        f"{dataset.train_rows} training rows, {dataset.evaluation_rows} evaluation rows, "
        f"{dataset.rejected} rejected"
    )
    for warning in _cuts(json.loads((folder / REPORT).read_text())):
        get_run_logger().warning(warning)
    return dataset


def _intact(dataset: DatasetRef) -> bool:
    if not artifacts.readable(dataset):
        return False
    folder = artifacts.fetch(dataset.uri)
    wanted = {"train.jsonl": dataset.train_digest, "evaluation.jsonl": dataset.evaluation_digest}
    return all(
        (folder / name).is_file() and digest.of_file(folder / name) == found
        for name, found in wanted.items()
    )


def _cuts(report: dict[str, Any]) -> list[str]:
    """What does not fit, a line a split: too long prompts are cut, too long references unlearnable."""
    said = []
    for split in ("train", "evaluation"):
        found = report[split]
        prompts, summaries = found["truncated_prompts"], found["summaries_over_max_new_tokens"]
        if prompts["count"] or summaries["count"]:
            said.append(
                f"{split}: {prompts['count']} of {found['rows']} prompts cut to {prompts['limit']} "
                f"tokens, {summaries['count']} references longer than max_new_tokens "
                f"{summaries['limit']}"
            )
    return said


def preflight(recipe: Recipe, base: Path | None) -> tuple[list[str], list[str]]:
    """What `precis check` says of the data: facts, and problems that would stop a run."""
    settings = package.settings_for(recipe, base) if base else None
    found, counts = problems(recipe.data, recipe.prompt, settings, base)
    facts = [f"data: {', '.join(f'{n} {name}' for name, n in counts.items())}"] if counts else []
    return facts, found
