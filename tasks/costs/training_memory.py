"""What training needs of a device's memory, from the recipe and the base's file headers alone.

And so whether a base's weights rest whole on each device of a team. On a GPU it is what
tasks.costs.memory_plan says; on a CPU, or by TRL's own path, weights, adapter, optimizer and what autograd
keeps of one micro-batch (counted on Llama and Phi shapes with saved_tensors_hooks, which
tests/costs/test_preflight.py repeats). Imports no torch.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from tasks.contracts.recipe import Recipe
from tasks.contracts.units import GIB
from tasks.costs import memory_plan, model_sizes
from tasks.models.compatibility import Layers, why_not_sharded
from tasks.models.safetensors_headers import Shapes
from tasks.models.weight_bytes import element_bytes, loaded_bytes

# Kept for the backward pass, bytes a token and layer: for each hidden unit, for each unit of the MLP.
# Mixed precision keeps casts beside what it casts. With checkpointing a layer keeps its input alone.
KEPT_BYTES = {"cuda": (30, 10), "cpu": (36, 20)}
LOGIT_BYTES = 12  # a token and vocabulary entry: logits, their float32 copy and its gradient
CUDA_BYTES = GIB // 2  # a process's context, kernels and what its allocator leaves unused


def weight_shards(
    recipe: Recipe, config: dict[str, Any], shapes: Shapes, where: str, rows: int, free: float
) -> int:
    """How many parts the base's weights rest in when training: one, or one a device.

    `where`: cuda or cpu; `rows`: the longest row's tokens; `free`: bytes of a GPU's memory before a
    process has anything there.
    """
    training = recipe.training
    count, asked = training.devices * training.nodes, training.base_weights
    if count == 1 or asked == "replicated" or why_not_sharded(recipe, config):
        return 1
    if asked == "auto":
        if where == "cpu":
            return 1
        whole = _leanest_bytes(recipe, config, shapes, rows, int(free)) - CUDA_BYTES
        if whole <= memory_plan.USABLE * (free - CUDA_BYTES):
            return 1
    return count


def _leanest_bytes(
    recipe: Recipe, config: dict[str, Any], shapes: Shapes, rows: int, free: int
) -> int:
    """Of a GPU that holds all weights, by the last plan that a rehearsal would come to."""
    chosen = planned(recipe, config, shapes, free, 1)
    if chosen is None:
        return training_bytes(recipe, config, shapes, "cuda", rows, free, 1)
    shape, plan = chosen
    while lean := memory_plan.leaner(shape, plan):
        plan = lean
    return int(memory_plan.peak_bytes(shape, plan)) + CUDA_BYTES


def planned(
    recipe: Recipe, config: dict[str, Any], shapes: Shapes, free: int, parts: int
) -> tuple[memory_plan.Shape, memory_plan.Plan] | None:
    """How training will go on a GPU with so much free memory, where tasks.costs.memory_plan knows it."""
    if not model_sizes.on_fast_path(recipe, config):
        return None
    shape, training = model_sizes.shape_of(recipe, config, shapes), recipe.training
    if shape is None:
        return None
    available, shape = free - CUDA_BYTES, replace(shape, shards=parts)
    return shape, memory_plan.named(
        training.memory, shape, training.gradient_checkpointing, available
    )


def training_bytes(
    recipe: Recipe,
    config: dict[str, Any],
    shapes: Shapes,
    where: str,
    rows: int,
    free: int,
    parts: int,
) -> int:
    """Memory of one process that trains, `parts` sharing out the base; as `weight_shards` for the rest."""
    if where == "cuda" and (chosen := planned(recipe, config, shapes, free, parts)):
        return int(memory_plan.peak_bytes(*chosen)) + CUDA_BYTES
    wide, training, layers = element_bytes(where), recipe.training, Layers.of(shapes)
    linear = layers.inner.values()
    weights: float = (sum(map(prod, shapes.values())) - sum(map(prod, linear))) * wide
    resting = sum(loaded_bytes(shape, recipe.base.quantization, where) for shape in linear)
    depth, hidden = int(config.get("num_hidden_layers", 0)), int(config.get("hidden_size", 0))
    # Of several parts one rests here, and two layers are whole.
    weights += resting if parts == 1 else resting * min(1, 1 / parts + 2 / max(1, depth))
    if recipe.base.quantization != "none":
        # One at a time is computed with in full.
        weights += wide * max(map(prod, linear), default=0)
    # An adapter parameter costs its value, gradient and two moments, in float32.
    adapter = 16 * adapter_parameters(recipe, layers) + _dora_bytes(recipe, layers, wide)
    # Packed sequences are max_length long whatever the rows are.
    length = training.max_length if training.packing else rows
    tokens = training.per_device_train_batch_size * length
    mlp = int(config.get("intermediate_size") or 4 * hidden)
    layer = KEPT_BYTES[where][0] * hidden + KEPT_BYTES[where][1] * mlp
    again = training.gradient_checkpointing
    kept = layer + wide * hidden * depth if again else layer * depth
    kept += LOGIT_BYTES * int(config.get("vocab_size", 0))
    return int(weights + adapter + tokens * kept) + (CUDA_BYTES if where == "cuda" else 0)


def adapter_parameters(recipe: Recipe, layers: Layers) -> int:
    """Trained parameters, with DoRA's magnitudes."""
    adapted = layers.adapted(recipe).values()
    magnitudes = sum(rows for rows, _ in adapted) if recipe.adapter.kind == "dora" else 0
    return sum(recipe.adapter.r * sum(shape) for shape in adapted) + magnitudes


def _dora_bytes(recipe: Recipe, layers: Layers, wide: int) -> int:
    """For a row's length PEFT writes B A out, by way of an identity matrix: of one layer at a time."""
    if recipe.adapter.kind != "dora":
        return 0
    adapted = layers.adapted(recipe).values()
    return max((4 * i * i + (4 + 3 * wide) * o * i for o, i in adapted), default=0)
