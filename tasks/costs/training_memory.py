"""Memory that training needs on a device, from the recipe and the base's file headers alone.

It decides whether a base's weights are sharded over the devices. On a GPU it is the memory plan's; on a
CPU, or by TRL's own path, weights, adapter, optimizer and what autograd keeps of one micro-batch
(counted on Llama and Phi shapes with saved_tensors_hooks, as tests/costs/test_preflight.py does).
Imports no torch.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from tasks.contracts.recipe import Recipe
from tasks.contracts.units import GIB
from tasks.costs import memory_plan, model_sizes
from tasks.models.compatibility import Layers, why_not_sharded
from tasks.models.config_checks import count
from tasks.models.safetensors_headers import Shapes
from tasks.models.weight_bytes import element_bytes, loaded_bytes

# Kept for the backward pass, bytes a token and layer: for each hidden unit, for each unit of the MLP.
# Mixed precision keeps casts beside what it casts. With checkpointing a layer keeps only its input.
KEPT_BYTES = {"cuda": (30, 10), "cpu": (36, 20)}
LOGIT_BYTES = 12  # a token and vocabulary entry: logits, their float32 copy and its gradient
CUDA_BYTES = GIB // 2  # a process's context, kernels and what its allocator leaves unused


def weight_shards(
    recipe: Recipe, config: dict[str, Any], shapes: Shapes, where: str, rows: int, free: float
) -> int:
    """How many shards the base's weights are stored in when training: one, or one a device.

    `where`: cuda or cpu; `rows`: the longest row's tokens; `free`: bytes of a GPU's memory before a
    process has anything there.
    """
    training = recipe.training
    devices, base_weights = training.devices * training.nodes, training.base_weights
    if devices == 1 or base_weights == "replicated" or why_not_sharded(recipe, config):
        return 1
    if base_weights == "auto":
        if where == "cpu":
            return 1
        replicated_bytes = _least_bytes(recipe, config, shapes, rows, int(free)) - CUDA_BYTES
        if replicated_bytes <= memory_plan.USABLE * (free - CUDA_BYTES):
            return 1
    return devices


def _least_bytes(
    recipe: Recipe, config: dict[str, Any], shapes: Shapes, rows: int, free: int
) -> int:
    """Of a GPU that holds all weights, under the last plan that the fast path would try."""
    chosen = planned(recipe, config, shapes, free, 1)
    if chosen is None:
        return training_bytes(recipe, config, shapes, "cuda", rows, free, 1)
    shape, plan = chosen
    while leaner := memory_plan.leaner(shape, plan):
        plan = leaner
    return int(memory_plan.peak_bytes(shape, plan)) + CUDA_BYTES


def planned(
    recipe: Recipe, config: dict[str, Any], shapes: Shapes, free: int, shards: int
) -> tuple[memory_plan.Shape, memory_plan.Plan] | None:
    """Sizes and plan on a GPU with `free` bytes of memory; None when training takes TRL's own path."""
    if not model_sizes.on_fast_path(recipe, config):
        return None
    shape, training = model_sizes.shape_of(recipe, config, shapes), recipe.training
    if shape is None:
        return None
    available, shape = free - CUDA_BYTES, replace(shape, shards=shards)
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
    shards: int,
) -> int:
    """Memory of one process that trains, the base in `shards` shards; the rest as in `weight_shards`."""
    if where == "cuda" and (chosen := planned(recipe, config, shapes, free, shards)):
        return int(memory_plan.peak_bytes(*chosen)) + CUDA_BYTES
    width, training, layers = element_bytes(where), recipe.training, Layers.of(shapes)
    linear = layers.inner.values()
    weights: float = (sum(map(prod, shapes.values())) - sum(map(prod, linear))) * width
    stored = sum(loaded_bytes(shape, recipe.base.quantization, where) for shape in linear)
    depth, hidden = count(config, "num_hidden_layers"), count(config, "hidden_size")
    # Of several shards one is stored here, and two layers are gathered.
    weights += stored if shards == 1 else stored * min(1, 1 / shards + 2 / max(1, depth))
    if recipe.base.quantization != "none":
        # One at a time is dequantized.
        weights += width * max(map(prod, linear), default=0)
    # An adapter parameter costs its value, gradient and two moments, in float32.
    adapter = 16 * adapter_parameters(recipe, layers) + _dora_bytes(recipe, layers, width)
    # Packed sequences are max_length long whatever the rows are.
    length = training.max_length if training.packing else rows
    tokens = training.per_device_train_batch_size * length
    mlp = count(config, "intermediate_size", 4 * hidden)
    layer = KEPT_BYTES[where][0] * hidden + KEPT_BYTES[where][1] * mlp
    checkpointed = training.gradient_checkpointing
    kept = layer + width * hidden * depth if checkpointed else layer * depth
    kept += LOGIT_BYTES * count(config, "vocab_size")
    return int(weights + adapter + tokens * kept) + (CUDA_BYTES if where == "cuda" else 0)


def adapter_parameters(recipe: Recipe, layers: Layers) -> int:
    """Trained parameters, with DoRA's magnitudes."""
    adapted = layers.adapted(recipe).values()
    magnitudes = sum(rows for rows, _ in adapted) if recipe.adapter.kind == "dora" else 0
    return sum(recipe.adapter.r * sum(shape) for shape in adapted) + magnitudes


def _dora_bytes(recipe: Recipe, layers: Layers, width: int) -> int:
    """For the norms of rows PEFT computes B A, by way of an identity matrix, of one layer at a time."""
    if recipe.adapter.kind != "dora":
        return 0
    adapted = layers.adapted(recipe).values()
    return max((4 * i * i + (4 + 3 * width) * o * i for o, i in adapted), default=0)
