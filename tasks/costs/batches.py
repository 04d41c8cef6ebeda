"""Rows counted in tokens, micro-batches of a training, and how long one takes on a GPU's fast path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tasks.contracts.recipe import Recipe
from tasks.costs import calibration, memory_plan
from tasks.costs.hardware_speed import Speed


@dataclass(frozen=True)
class RowCounts:
    """One side of the data, in tokens as the model will see them."""

    rows: int
    sequences: int
    tokens: int
    completion_tokens: int
    median_prompt: int
    longest_prompt: int
    long_summary: int  # 95th percentile

    @classmethod
    def of(cls, split_report: dict[str, Any], max_source_tokens: int) -> RowCounts:
        """From a split of ingest's report; longer prompts are cut to `max_source_tokens`."""
        prompts, sequences = split_report["prompt_tokens"], split_report["sequences"]
        return cls(
            split_report["rows"],
            sequences["count"],
            sequences["tokens"],
            sequences["completion_tokens"],
            min(prompts["p50"], max_source_tokens),
            min(prompts["max"], max_source_tokens),
            split_report["summary_tokens"]["p95"],
        )


def gpu_batch_seconds(shape: memory_plan.Shape, plan: memory_plan.Plan, speed: Speed) -> float:
    """Seconds of a micro-batch, forward and backward, on a GPU's fast path."""
    products = memory_plan.relative_time(shape, plan) * shape.linear / speed.products
    recomputed_share = plan.recomputed / shape.layers
    kept = shape.kept * shape.element_bytes * shape.layers * shape.tokens
    moved = calibration.ACTIVATION_PASSES["cuda"] * kept * (1 + recomputed_share / 2)
    launched = calibration.LAYER_STEP_SECONDS["cuda"] * shape.layers * (1 + recomputed_share)
    return max(products + moved / speed.stream, launched)


def batches_of(recipe: Recipe, rows: RowCounts) -> tuple[int, float]:
    """Micro-batches of a whole training on each device, and tokens in each, padding included."""
    training = recipe.training
    size, devices = training.per_device_train_batch_size, training.devices * training.nodes
    sequences, length = rows.sequences, rows.tokens / max(rows.sequences, 1)
    if training.packing:
        sequences = math.ceil(rows.tokens / (calibration.PACKED_SHARE * training.max_length))
        length = rows.tokens / sequences
    accumulated = training.gradient_accumulation_steps
    batches = math.ceil(sequences / (size * devices))
    steps = math.ceil(batches / accumulated * training.num_train_epochs)
    if training.max_steps > 0:
        steps = training.max_steps
    return steps * accumulated, min(size, sequences) * length
