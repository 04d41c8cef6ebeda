"""What a run will need, from the recipe and the base's file headers alone: memory and disk.

A first estimate, meant to catch runs that cannot fit; it counts weights, adapter, optimizer and the
activations of one packed micro-batch (Korthikanti et al. 2022, arXiv:2205.05198, per layer).
"""

from __future__ import annotations

import json
import struct
import subprocess
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil

from tasks import device, package
from tasks.recipe import Recipe

GIB = 2**30
NF4_BYTES = 0.516  # 4 bits and, doubly quantized, 0.127 bits of scale a weight
# Kept for the backward pass, in bytes a token: about 34 a hidden unit and layer in 16 bits, the
# MLP's wider part included; logits and their gradient in float32.
ACTIVATION_BYTES, LOGIT_BYTES = 34, 12
LEAN = {"auto", "full", "least"}  # training.memory that computes all layers again where it must


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
    parameters = sum(map(prod, shapes.values()))
    linear = sum(prod(s) for name, s in shapes.items() if len(s) == 2 and "layers." in name)
    config = package.config_of(base)
    existing = work
    while not existing.exists():
        existing = existing.parent
    return Estimate(
        parameters,
        _training_bytes(recipe, config, parameters, linear),
        _memory_bytes(),
        # merged package, its copy in MLflow, checkpoints of the adapter
        2 * 2 * parameters + 3 * 12 * _adapter_parameters(recipe, shapes),
        psutil.disk_usage(str(existing)).free,
        device.compute(),
    )


def tensor_shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, from the safetensors headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        shapes |= {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}
    return shapes


def target_problems(recipe: Recipe, base: Path) -> list[str]:
    """Adapter targets that no linear layer of the base answers to, with those there are."""
    wanted = recipe.adapter.target_modules
    if isinstance(wanted, str):
        return []
    weights = (n for n, s in tensor_shapes(base).items() if len(s) == 2 and "layers." in n)
    there = {name.removesuffix(".weight") for name in weights}
    missing = [w for w in wanted if not any(name.endswith(f".{w}") for name in there)]
    if not missing:
        return []
    endings = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in there}))
    return [f"adapter.target_modules: {base} has no layer {', '.join(missing)}; it has {endings}"]


def _training_bytes(recipe: Recipe, config: dict[str, Any], parameters: int, linear: int) -> int:
    weight = NF4_BYTES if recipe.base.quantization == "nf4" else 2
    weights = linear * weight + (parameters - linear) * 2
    hidden, layers = int(config.get("hidden_size", 0)), int(config.get("num_hidden_layers", 0))
    vocabulary = int(config.get("vocab_size", 0))
    tokens = recipe.training.per_device_train_batch_size * recipe.training.max_length
    kept = 2 * hidden * layers + ACTIVATION_BYTES * hidden
    logits = LOGIT_BYTES * vocabulary
    if device.compute() == "cuda" and recipe.training.memory in LEAN:
        logits = 0  # in chunks of a constant size
    elif not recipe.training.gradient_checkpointing:
        kept = ACTIVATION_BYTES * hidden * layers
    # An adapter parameter costs its value, gradient and two moments, in float32.
    adapter = 16 * recipe.adapter.r * 2 * hidden * 7 * layers
    return int(weights + adapter + tokens * (kept + logits))


def _adapter_parameters(recipe: Recipe, shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(
        recipe.adapter.r * sum(shape)
        for name, shape in shapes.items()
        if len(shape) == 2 and "layers." in name
    )


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
