"""What the models of gate.nli_model and gate.bertscore_model take, estimated from their parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.contracts.formatting import duration
from tasks.contracts.metrics import MODEL_BASED, NLI, model_of
from tasks.contracts.recipe import Recipe
from tasks.contracts.units import GIB
from tasks.costs import calibration, hardware_speed
from tasks.costs.batches import RowCounts
from tasks.costs.hardware_speed import Speed
from tasks.models.prepared_base import PreparedBase
from tasks.serving.summarizer import parameter_count

SENTENCE_TOKENS = 20  # NLI reads each sentence of an output with each of its document
BATCH_GIB = 1.0  # of 4,096 tokens read at once, with bert-large's shape
WIDTH = 4  # bytes: they are loaded in float32


def lines(
    recipe: Recipe, base: PreparedBase, report: dict[str, Any], speed: Speed | None = None
) -> list[str]:
    """For a terminal, a line for each such model of a recipe; none without one.

    `report`: ingest's. Not measured: the sentences' length is a guess, and all parameters are taken to be
    used for each token.
    """
    speed = speed or hardware_speed.this_machine()
    rows = RowCounts.of(report["evaluation"], base.settings.max_source_tokens)
    told = []
    for name in MODEL_BASED:
        if (folder := model_of(recipe.gate, name)) is None:
            continue
        parameters = parameter_count(Path(folder))
        line = f"gate.{name}_model: {parameters / 1e6:,.1f} million parameters, about "
        line += f"{WIDTH * parameters / GIB + BATCH_GIB:.1f} GiB"
        if speed:
            seconds = _seconds(parameters, _tokens(name, rows), speed)
            line += f" and {duration(seconds)} for each model whose summaries are scored"
        told.append(f"{line} (a rough estimate from its parameters)")
    return told


def _tokens(name: str, rows: RowCounts) -> float:
    """How many tokens are read for the summaries of one model."""
    if name == NLI:
        return rows.rows * 2 * rows.median_prompt * max(1.0, rows.long_summary / SENTENCE_TOKENS)
    return rows.rows * 2 * rows.long_summary


def _seconds(parameters: int, tokens: float, speed: Speed) -> float:
    rate = speed.products * (calibration.SMALL_PRODUCTS_SHARE if speed.device == "cpu" else 1)
    loaded = WIDTH * parameters / calibration.LOAD_RATE[speed.device]
    return (
        calibration.START_SECONDS[speed.device]["evaluate"]
        + loaded
        + 2 * parameters * tokens / rate
    )
