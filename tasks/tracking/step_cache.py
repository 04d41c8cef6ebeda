"""Results of steps that need not be computed again, found by their step key.

A step's key is the digest of its inputs, its part of the recipe, its code and its libraries. Key and
result are tags of the MLflow run that did the work, so any machine that reads the same MLflow finds
them. A run that takes a stored result records it under its own tags too: the newest run has as a rule
the results of all steps, and one search finds them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, TypeVar

from tasks.contracts import code_digest, digest
from tasks.contracts.errors import RegistryError
from tasks.contracts.records import from_json, to_json
from tasks.tracking import artifacts, history
from tasks.tracking.mlflow_run import Run

T = TypeVar("T")
STEP_TAGS = "precis.step."
KEY_CHARACTERS = 32  # of a key, in a tag's name
RUNS_PER_PAGE = 1  # the newest run usually has the result, and each comes with all that it logged
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")


def step_key(step: str, **inputs: Any) -> str:
    """SHA-256 (hex) of a step's inputs, the code that decides its numbers, and its libraries."""
    code = code_digest.of_step(step)
    return digest.of_value({"step": step, "code": code, "versions": _versions(), "inputs": inputs})


def recall(
    run: Run, step: str, key: str, kind: type[T], intact: Callable[[T], bool], shown: str = ""
) -> T | None:
    """The newest result on record for this step and key whose files are `intact`; None without one.

    `shown`: the step's name in `run.skipped`, if not `step`.
    """
    tag = _tag(step, key)
    for recorded in _recorded(run, tag):
        result = from_json(kind, recorded)
        if artifacts.intact(result, intact):
            run.skipped.append(shown or step)
            run.add_tags_to_next_write({tag: to_json(result)})
            return result
    return None


def record(
    run: Run, step: str, key: str, result: Any, metrics: dict[str, float] | None = None
) -> None:
    """Store a step's result under its key, and log what was measured."""
    run.write(tags={_tag(step, key): to_json(result)}, metrics=metrics)


def results(tags: Mapping[str, str], step: str, kind: type[T]) -> list[T]:
    """The results of a step among a run's tags: several if its inputs changed between two tries."""
    prefix = _tag(step, "")
    return [from_json(kind, value) for name, value in tags.items() if name.startswith(prefix)]


def results_of(run: Any, step: str, kind: type[T]) -> list[T]:
    """The same of a run that was read. Raises RegistryError that names each tag which holds no result."""
    prefix, found, problems = _tag(step, ""), [], []
    for tag, value in run.data.tags.items():
        if tag.startswith(prefix):
            try:
                found.append(from_json(kind, value))
            except ValueError:  # pydantic's
                problems.append(
                    f"MLflow run {run.info.run_id}: its tag {tag} holds {value[:40]!r} instead of a result "
                    f"of {step}; restore it, or remove it: mlflow.MlflowClient().delete_tag("
                    f"{run.info.run_id!r}, {tag!r})"
                )
    if problems:
        raise RegistryError.of(problems)
    return found


def _tag(step: str, key: str) -> str:
    return f"{STEP_TAGS}{step}.{key[:KEY_CHARACTERS]}"


def _recorded(run: Run, tag: str) -> Iterator[str]:
    """The values of a step's tag, newest first; the first one usually without a request.

    A run has the tags of all steps that it computed or recalled, so the run in which one result was
    found usually has the others.
    """
    read_before = run.step_tags.get(tag)
    if read_before is not None:
        yield read_before
    for other in history.runs(run.client, run.experiment_id, f"tags.`{tag}` != ''", RUNS_PER_PAGE):
        artifacts.remember_root(other.info)
        tags = other.data.tags
        new = {name: value for name, value in tags.items() if name.startswith(STEP_TAGS)}
        run.step_tags = new | run.step_tags
        if tags[tag] != read_before:
            yield tags[tag]


@functools.cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}
