"""What a run will need, from the recipe and the base's file headers alone: memory and disk.

A first estimate, meant to catch runs that cannot fit; it counts weights, adapter, optimizer and the
activations of one packed micro-batch (Korthikanti et al. 2022, arXiv:2205.05198, per layer).
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil

from tasks import device, package
from tasks.fit import Layers, tensor_shapes
from tasks.recipe import Recipe

GIB = 2**30
FOUR_BIT_BYTES = 0.516  # 4 bits and, doubly quantized, 0.127 bits of scale a weight
# Kept for the backward pass, in bytes a token and layer in 16 bits: about 18 a hidden unit (attention,
# norms) and 4 a unit of the MLP's wider part, twice that where it is gated: 34 a hidden unit for the
# usual MLP, four times as wide. Logits and their gradient in float32.
HIDDEN_BYTES, MLP_BYTES, LOGIT_BYTES = 18, 4, 12


@dataclass(frozen=True)
class Estimate:
    """Need against what is there, in bytes."""

    parameters: int
    training_bytes: int
    memory_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    device: str

    def lines(self) -> list[str]:
        """For a terminal."""
        return [
            f"base: {self.parameters / 1e6:,.1f} M parameters",
            f"training memory: about {self.training_bytes / GIB:.1f} GiB of "
            f"{self.memory_bytes / GIB:.1f} GiB on {self.device}",
            f"disk: about {self.disk_bytes / GIB:.2f} GiB of {self.disk_free_bytes / GIB:.1f} GiB free",
        ]

    def problems(self) -> list[str]:
        """What does not fit, with the mend."""
        found = []
        if self.training_bytes > self.memory_bytes:
            found.append(
                f"training needs about {self.training_bytes / GIB:.1f} GiB and {self.device} has "
                f"{self.memory_bytes / GIB:.1f}; lower training.per_device_train_batch_size or "
                "training.max_length, or set training.gradient_checkpointing"
            )
        if self.disk_bytes > self.disk_free_bytes:
            found.append(
                f"the run needs about {self.disk_bytes / GIB:.1f} GiB of disk and "
                f"{self.disk_free_bytes / GIB:.1f} are free; make room, or set PRECIS_WORK elsewhere"
            )
        return found


def estimate(recipe: Recipe, base: Path, work: Path) -> Estimate:
    """The estimate for a base on this machine."""
    shapes = tensor_shapes(base)
    parameters, layers = sum(map(prod, shapes.values())), Layers.of(shapes)
    config = package.config_of(base)
    existing = work
    while not existing.exists():
        existing = existing.parent
    return Estimate(
        parameters,
        _training_bytes(recipe, config, parameters, layers),
        _memory_bytes(),
        # merged package, its copy in MLflow, checkpoints of the adapter
        2 * 2 * parameters + 3 * 12 * _adapter_parameters(recipe, layers),
        psutil.disk_usage(str(existing)).free,
        device.compute(),
    )


def _training_bytes(recipe: Recipe, config: dict[str, Any], parameters: int, layers: Layers) -> int:
    wide = 4 if device.compute() == "cpu" else 2  # bytes of the type that is computed in
    linear = sum(map(prod, layers.inner.values()))
    resting = sum(
        _resting_bytes(shape, recipe.base.quantization, wide) for shape in layers.inner.values()
    )
    hidden, depth = int(config.get("hidden_size", 0)), int(config.get("num_hidden_layers", 0))
    vocabulary = int(config.get("vocab_size", 0))
    inner = int(config.get("intermediate_size") or 4 * hidden)
    gated = 2 if any("gate" in name for name in layers.inner) else 1
    each = (HIDDEN_BYTES * hidden + MLP_BYTES * inner * gated) * wide // 2
    kept = 2 * hidden * depth + each if recipe.training.gradient_checkpointing else each * depth
    tokens = recipe.training.per_device_train_batch_size * recipe.training.max_length
    return int(
        resting
        + (parameters - linear) * wide
        # An adapter parameter costs its value, gradient and two moments, in float32.
        + 16 * _adapter_parameters(recipe, layers)
        + _dora_bytes(recipe, layers, wide)
        + tokens * (kept + LOGIT_BYTES * vocabulary)
    )


def _resting_bytes(shape: tuple[int, ...], quantization: str, wide: int) -> float:
    rows, columns = shape
    if quantization == "none" or (quantization != "int8" and wide == 4 and columns % 64):
        return prod(shape) * wide  # uneven rows of 4 bits rest in full on a CPU: tasks.rounding
    return prod(shape) + 4 * rows if quantization == "int8" else prod(shape) * FOUR_BIT_BYTES


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
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(asked.stdout.split()[0]) * 2**20
