"""What a run will need, from the recipe and the base's file headers alone: memory and disk.

A first estimate, meant to catch runs that cannot fit. Training on a GPU is what tasks.train.memory says
of it; on a CPU, or by TRL's own path, weights, adapter, optimizer and what autograd keeps of one
micro-batch (counted on Llama and Phi shapes with saved_tensors_hooks, which tests/test_estimate.py
repeats). Evaluation: the merged model's weights and its cache of keys and values. Nothing here grows with
the square of the context: attention never builds its matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil

from tasks import device, package, sizes, speed
from tasks.fit import Layers, tensor_shapes
from tasks.recipe import Recipe
from tasks.train import memory

GIB = 2**30
Shapes = dict[str, tuple[int, ...]]
FOUR_BIT_BYTES = 0.516  # 4 bits and, doubly quantized, 0.127 bits of scale a weight
# Kept for the backward pass, bytes a token and layer: for each hidden unit, for each unit of the MLP.
# Mixed precision keeps casts beside what it casts. With checkpointing a layer keeps its input alone.
KEPT_BYTES = {"cuda": (30, 10), "cpu": (36, 20)}
LOGIT_BYTES = 12  # a token and vocabulary entry: logits, their float32 copy and its gradient
CUDA_BYTES = GIB // 2  # a process's context, kernels and what its allocator leaves unused
CARD = 15 * GIB  # what a card sold with 16 GB has for a process (a T4: 15,360 MiB)


@dataclass(frozen=True)
class Estimate:
    """Need against what is there, in bytes."""

    parameters: int
    training_bytes: int
    gpu_training_bytes: int  # the same on a GPU, if this machine has none
    weights_bytes: int  # of the merged model in evaluation
    row_bytes: int  # more, for each document of a batch, at its longest
    batch_size: int
    row_tokens: int
    memory_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    device: str
    # How a GPU here trains; None on a CPU, and for TRL's own path.
    shape: memory.Shape | None = None
    plan: memory.Plan | None = None

    def lines(self) -> list[str]:
        """For a terminal."""
        found = [
            f"base: {self.parameters / 1e6:,.1f} M parameters",
            f"training memory: about {self.training_bytes / GIB:.1f} GiB of "
            f"{self.memory_bytes / GIB:.1f} GiB on {self.device}"
            + (f": {self.plan.words(self.shape.layers)}" if self.plan and self.shape else ""),
        ]
        if self.device == "cpu":
            fits = "fits" if self.gpu_training_bytes < CARD else "does not fit"
            found.append(
                f"on a GPU: training about {self.gpu_training_bytes / GIB:.1f} GiB, which {fits} "
                "a 16 GB card"
            )
        return [
            *found,
            self._evaluation(),
            f"disk: about {self.disk_bytes / GIB:.2f} GiB of {self.disk_free_bytes / GIB:.1f} GiB free",
        ]

    def _evaluation(self) -> str:
        # No problem yet: documents may be shorter than they are allowed to be.
        whole = self.weights_bytes + self.batch_size * self.row_bytes
        said = (
            f"evaluation memory: up to {whole / GIB:.1f} GiB, of it {self.weights_bytes / GIB:.1f} "
            f"weights, for {self.batch_size} documents of {self.row_tokens} tokens at once"
        )
        most = (self.memory_bytes - self.weights_bytes) // self.row_bytes
        if most >= self.batch_size:
            return said
        if most < 1:
            return f"{said}; not even one document that long is sure to fit here"
        return f"{said}; documents that long want evaluation.batch_size {most} here"

    def problems(self) -> list[str]:
        """What does not fit, with the mend."""
        found = []
        if self.training_bytes > self.memory_bytes:
            found.append(
                f"training needs about {self.training_bytes / GIB:.1f} GiB and {self.device} has "
                f"{self.memory_bytes / GIB:.1f}; lower training.per_device_train_batch_size or "
                "training.max_length, or set training.gradient_checkpointing"
            )
        if self.weights_bytes > self.memory_bytes:
            found.append(
                f"evaluation loads the merged model's {self.weights_bytes / GIB:.1f} GiB and "
                f"{self.device} has {self.memory_bytes / GIB:.1f}; name a smaller base, or run where "
                "there is more memory"
            )
        if self.disk_bytes > self.disk_free_bytes:
            found.append(
                f"the run needs about {self.disk_bytes / GIB:.1f} GiB of disk and "
                f"{self.disk_free_bytes / GIB:.1f} are free; make room, or set PRECIS_WORK elsewhere"
            )
        return found


def estimate(recipe: Recipe, base: Path, work: Path) -> Estimate:
    """The estimate for a base on this machine. Raises BaseModelError as `package.context_for`."""
    shapes, config = tensor_shapes(base), package.config_of(base)
    parameters = sum(map(prod, shapes.values()))
    where, rows = device.compute(), package.context_for(recipe, base)
    free = _memory_bytes()
    chosen = _planned(recipe, config, shapes, free) if where == "cuda" else None
    existing = work
    while not existing.exists():
        existing = existing.parent
    return Estimate(
        parameters,
        _training_bytes(recipe, config, shapes, where, rows, free),
        _training_bytes(recipe, config, shapes, "cuda", rows, CARD),
        _width(where) * parameters + (CUDA_BYTES if where == "cuda" else 0),
        # At least a byte: where a config does not say what a token takes, there is no room to divide.
        max(1, rows * _row_token_bytes(config, _width(where), recipe.evaluation.kv_cache)),
        1 if recipe.base.rope == "dynamic" else recipe.evaluation.batch_size,
        rows,
        free,
        # merged package, its copy in MLflow, checkpoints of the adapter
        2 * 2 * parameters + 3 * 12 * _adapter_parameters(recipe, Layers.of(shapes)),
        psutil.disk_usage(str(existing)).free,
        where,
        *(chosen or (None, None)),
    )


def _planned(
    recipe: Recipe, config: dict[str, Any], shapes: Shapes, free: int
) -> tuple[memory.Shape, memory.Plan] | None:
    """How training will go on a GPU with so much free memory, where tasks.train.memory knows it."""
    if not sizes.on_fast_path(recipe, config):
        return None
    shape, training = sizes.shape_of(recipe, config, shapes), recipe.training
    if shape is None:
        return None
    available = free - CUDA_BYTES
    return shape, memory.named(training.memory, shape, training.gradient_checkpointing, available)


def _width(where: str) -> int:
    """Bytes of a number: training and evaluation compute in float32 on a CPU, in 16 bits on a GPU."""
    return 4 if where == "cpu" else 2


def _training_bytes(
    recipe: Recipe, config: dict[str, Any], shapes: Shapes, where: str, rows: int, free: int
) -> int:
    if where == "cuda" and (chosen := _planned(recipe, config, shapes, free)):
        return int(memory.peak_bytes(*chosen)) + CUDA_BYTES
    width, training, layers = _width(where), recipe.training, Layers.of(shapes)
    linear = layers.inner.values()
    weights: float = (sum(map(prod, shapes.values())) - sum(map(prod, linear))) * width
    weights += sum(_resting_bytes(shape, recipe.base.quantization, where) for shape in linear)
    if recipe.base.quantization != "none":
        weights += width * max(
            map(prod, linear), default=0
        )  # one at a time is computed with in full
    # An adapter parameter costs its value, gradient and two moments, in float32.
    adapter = 16 * _adapter_parameters(recipe, layers) + _dora_bytes(recipe, layers, width)
    # Packed sequences are max_length long whatever the rows are.
    length = training.max_length if training.packing else rows
    tokens = training.per_device_train_batch_size * length
    depth, hidden = int(config.get("num_hidden_layers", 0)), int(config.get("hidden_size", 0))
    mlp = int(config.get("intermediate_size") or 4 * hidden)
    layer = KEPT_BYTES[where][0] * hidden + KEPT_BYTES[where][1] * mlp
    again = training.gradient_checkpointing
    kept = layer + width * hidden * depth if again else layer * depth
    kept += LOGIT_BYTES * int(config.get("vocab_size", 0))
    return int(weights + adapter + tokens * kept) + (CUDA_BYTES if where == "cuda" else 0)


def _resting_bytes(shape: tuple[int, ...], quantization: str, where: str) -> float:
    rows, columns = shape
    # Uneven rows of 4 bits rest in full on a CPU: tasks.rounding.
    if quantization == "none" or (quantization != "int8" and where == "cpu" and columns % 64):
        return prod(shape) * _width(where)
    return prod(shape) + 4 * rows if quantization == "int8" else prod(shape) * FOUR_BIT_BYTES


def cached_token_bytes(config: dict[str, Any], width: int) -> int:
    """Keys and values of one token in one layer, of numbers that are `width` bytes wide."""
    hidden, heads = int(config.get("hidden_size", 0)), int(config.get("num_attention_heads") or 1)
    head = int(config.get("head_dim") or hidden // heads)
    return width * 2 * int(config.get("num_key_value_heads") or heads) * head


def _row_token_bytes(config: dict[str, Any], width: int, kv_cache: str) -> int:
    """Memory of one token in evaluation: keys and values of every layer, and one layer's work."""
    layers = int(config.get("num_hidden_layers", 0))
    if kv_cache == "offloaded" and width < 4:
        layers = 2  # the one at work, and the next on its way
    hidden = int(config.get("hidden_size", 0))
    work = 4 * hidden + 3 * int(config.get("intermediate_size") or 4 * hidden)
    return cached_token_bytes(config, width) * layers + width * work


def _adapter_parameters(recipe: Recipe, layers: Layers) -> int:
    adapted = layers.adapted(recipe).values()
    magnitudes = sum(rows for rows, _ in adapted) if recipe.adapter.kind == "dora" else 0
    return sum(recipe.adapter.r * sum(shape) for shape in adapted) + magnitudes


def _dora_bytes(recipe: Recipe, layers: Layers, wide: int) -> int:
    """For a row's length PEFT writes B A out, by way of an identity matrix: of one layer at a time."""
    if recipe.adapter.kind != "dora":
        return 0
    adapted = layers.adapted(recipe).values()
    return max((4 * i * i + (4 + 3 * wide) * o * i for o, i in adapted), default=0)


def _memory_bytes() -> int:
    if device.compute() == "cpu":
        return int(psutil.virtual_memory().available)
    return speed.card().free_bytes
