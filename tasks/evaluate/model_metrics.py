"""Metrics that a model of their own computes: a predictions table with one more column.

Runs in a process of its own (tasks.processes.step_process), as generating does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from tasks.contracts.documents import plain_text
from tasks.contracts.errors import EvaluationError
from tasks.contracts.metrics import MODEL_BASED, NLI, model_of
from tasks.contracts.recipe import Gate, Recipe
from tasks.evaluate import bertscore, metric_model, nli
from tasks.processes.step_process import report
from tasks.tracking.predictions_table import read_table, write_table


def problems(gate: Gate) -> list[str]:
    """What keeps the models that a recipe names from being used."""
    return [
        problem
        for name in MODEL_BASED
        if (folder := model_of(gate, name)) is not None
        for problem in metric_model.problems(
            f"gate.{name}_model", folder, labels=name == NLI, layer=gate.bertscore_layer
        )
    ]


def settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """What decides a metric's numbers besides the model and the table: arguments of `write`."""
    if name == NLI:
        return {}
    return {"layer": recipe.gate.bertscore_layer, "several": recipe.evaluation.references}


def write(
    table: str,
    target: str,
    name: str,
    folder: str,
    layer: int | None = None,
    several: Literal["best", "mean", "first"] = "best",
) -> dict[str, Any]:
    """Write `table` again as `target`, with the metric `name` of each row.

    Returns the `mean`, and `split`, the documents' sentences (of BERTScore: the references) longer than the
    model reads. Raises EvaluationError when anything fails: no row is scored in its place.
    """
    rows = read_table(Path(table))
    outputs = [row.text for row in rows]

    def done(count: int) -> None:
        report(done=count, total=len(rows), what=name)

    try:
        if name == NLI:
            documents = [plain_text(row.document) for row in rows]
            values, split = nli.scores(Path(folder), documents, outputs, done)
        else:
            references = [row.references for row in rows]
            values, split = bertscore.scores(
                Path(folder), outputs, references, layer, several, done
            )
    except EvaluationError as error:
        raise EvaluationError(f"gate.{name}_model: {error}") from error
    except Exception as error:
        raise EvaluationError(
            f"gate.{name}_model: {name} could not be computed with {folder} ({type(error).__name__}: "
            f"{error}); use another model, or remove the setting"
        ) from error
    scored = [
        replace(row, scores=row.scores | {name: value})
        for row, value in zip(rows, values, strict=True)
    ]
    write_table(Path(target), scored)
    return {"split": split, "mean": fmean(values)}
