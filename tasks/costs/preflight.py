"""Memory and disk that a run needs, from the recipe and the base's file headers alone.

An estimate that catches runs that cannot fit. Training: tasks.costs.training_memory. Evaluation: the
merged model's weights and its cache of keys and values. Nothing grows with the square of the context:
attention never builds its matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil

from tasks.contracts.recipe import Recipe
from tasks.contracts.units import GIB
from tasks.costs import hardware_speed, memory_plan, training_memory
from tasks.models import settings
from tasks.models.compatibility import Layers, why_not_sharded
from tasks.models.config_checks import count
from tasks.models.prepared_base import BaseFolder
from tasks.models.weight_bytes import element_bytes
from tasks.processes import device
from tasks.serving.summarizer import WEIGHTS_SHARE

CARD = 15 * GIB  # what a card sold with 16 GB has for a process (a T4: 15,360 MiB)


@dataclass(frozen=True)
class Estimate:
    """What is needed and what is available, in bytes."""

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
    shape: memory_plan.Shape | None = None
    plan: memory_plan.Plan | None = None
    one_gpu_each: bool = False  # several processes, or workers of a cluster, write summaries
    may_shard: bool = False  # whether more devices could each hold a shard of the base
    adapter_bytes: int = 0  # of a version that holds an adapter; 0: it holds the merged model
    base_bytes: int = 0  # of the dequantized base beside it, stored once

    def lines(self) -> list[str]:
        """For a terminal."""
        facts = [
            f"base: {self.parameters / 1e6:,.1f} M parameters",
            f"training memory: about {self.training_bytes / GIB:.1f} GiB of "
            f"{self.memory_bytes / GIB:.1f} GiB on {self.device}"
            + (f": {self.plan.describe(self.shape)}" if self.plan and self.shape else ""),
        ]
        if self.device == "cpu":
            fits = "fits" if self.gpu_training_bytes < CARD else "does not fit"
            facts.append(
                f"on a GPU: training about {self.gpu_training_bytes / GIB:.1f} GiB, which {fits} "
                "a 16 GB card"
            )
        return [
            *facts,
            self._evaluation(),
            f"disk: about {self.disk_bytes / GIB:.2f} GiB of {self.disk_free_bytes / GIB:.1f} GiB free",
            *([self._registered()] if self.adapter_bytes else []),
        ]

    def _registered(self) -> str:
        return (
            f"register.as adapter: a version takes about {self.adapter_bytes / GIB:.2f} GiB; its base, "
            f"about {self.base_bytes / GIB:.2f} GiB, is stored once for all. Loading one needs about "
            f"{2 * self.parameters / GIB:.2f} GiB in the temporary folder"
        )

    def _for_evaluation(self) -> int:
        """Memory that one evaluation process has: of all GPUs, if it is the only one."""
        return self.memory_bytes * (self._gpus() if self.is_spread() else 1)

    def is_spread(self) -> bool:
        """Whether evaluation's one process has its weights on several GPUs."""
        return not self.one_gpu_each and self._gpus() > 1

    def _gpus(self) -> int:
        return gpus_for(2 * self.parameters)

    def _evaluation(self) -> str:
        # Not a problem: documents may be shorter than they are allowed to be.
        most_bytes = self.weights_bytes + self.batch_size * self.row_bytes
        line = (
            f"evaluation memory: up to {most_bytes / GIB:.1f} GiB, of it {self.weights_bytes / GIB:.1f} "
            f"weights, for {self.batch_size} documents of {self.row_tokens} tokens at once"
        )
        most = (self._for_evaluation() - self.weights_bytes) // self.row_bytes
        if most >= self.batch_size:
            return line
        if most < 1:
            return f"{line}; not even one document that long is sure to fit here"
        return f"{line}; documents that long need evaluation.batch_size {most} here"

    def problems(self) -> list[str]:
        """What does not fit, each with its fix."""
        problems = []
        if self.training_bytes > self.memory_bytes:
            sharded = ", or shard the base's weights over more training.devices"
            problems.append(
                f"training needs about {self.training_bytes / GIB:.1f} GiB and {self.device} has "
                f"{self.memory_bytes / GIB:.1f}; lower training.per_device_train_batch_size or "
                "training.max_length, or set training.gradient_checkpointing"
                + (sharded if self.may_shard else "")
            )
        if self.weights_bytes > self._for_evaluation():
            available = f"{self.device} has {self._for_evaluation() / GIB:.1f}"
            fix = "name a smaller base, or run where there is more memory"
            if self.weights_bytes <= self.memory_bytes * self._gpus():
                fix = "one process alone spreads it over all GPUs: evaluation.devices 1, no cluster"
            problems.append(
                f"evaluation loads the merged model's {self.weights_bytes / GIB:.1f} GiB and {available}; "
                f"{fix}"
            )
        if self.disk_bytes > self.disk_free_bytes:
            problems.append(
                f"the run needs about {self.disk_bytes / GIB:.1f} GiB of disk and "
                f"{self.disk_free_bytes / GIB:.1f} are free; free some, or set PRECIS_WORK to a larger disk"
            )
        return problems


def gpus_for(need: int) -> int:
    """GPUs that a model of `need` bytes is loaded on: one, or all (summarizer.needs_several_gpus)."""
    count = device.count()
    return count if count > 1 and need > WEIGHTS_SHARE * device.memory_bytes() else 1


def estimate(recipe: Recipe, base: BaseFolder, work: Path) -> Estimate:
    """The estimate for a base on this machine. Raises BaseModelError as `settings.max_row_tokens`."""
    shapes, config = base.tensors, base.config
    parameters = sum(map(prod, shapes.values()))
    where, rows = device.compute(), settings.max_row_tokens(recipe, base)
    free = _memory_bytes()
    shards = training_memory.weight_shards(recipe, config, shapes, where, rows, free)
    on_card = training_memory.weight_shards(recipe, config, shapes, "cuda", rows, CARD)
    chosen = (
        training_memory.planned(recipe, config, shapes, free, shards) if where == "cuda" else None
    )
    existing = work
    while not existing.exists():
        existing = existing.parent
    adapter_numbers = training_memory.adapter_parameters(recipe, Layers.of(shapes))
    is_adapter = recipe.registration.kind == "adapter"
    rounded = recipe.base.quantization != "none" and recipe.merge.onto == "quantized_base"
    base_bytes = (element_bytes(where) if rounded else 2) * parameters
    return Estimate(
        parameters,
        training_memory.training_bytes(recipe, config, shapes, where, rows, free, shards),
        training_memory.training_bytes(recipe, config, shapes, "cuda", rows, CARD, on_card),
        element_bytes(where) * parameters + (training_memory.CUDA_BYTES if where == "cuda" else 0),
        # At least a byte: it is divided by, also where a config does not say what a token takes.
        max(
            1,
            rows * _row_token_bytes(config, element_bytes(where), recipe.evaluation.kv_cache),
        ),
        1 if recipe.base.rope == "dynamic" else recipe.evaluation.batch_size,
        rows,
        free,
        # merged package, its copy in MLflow (or the base, and the model that its check makes of it),
        # checkpoints of the adapter
        2 * 2 * parameters + (base_bytes if is_adapter else 0) + 3 * 12 * adapter_numbers,
        psutil.disk_usage(str(existing)).free,
        where,
        chosen[0] if chosen else None,
        chosen[1] if chosen else None,
        recipe.evaluation.devices > 1 or recipe.evaluation.cluster is not None,
        where == "cuda" and not why_not_sharded(recipe, config),
        4 * adapter_numbers if is_adapter else 0,
        base_bytes if is_adapter else 0,
    )


def cached_token_bytes(config: dict[str, Any], width: int) -> int:
    """Keys and values of one token in one layer, of numbers that are `width` bytes wide."""
    hidden, heads = count(config, "hidden_size"), count(config, "num_attention_heads", 1)
    head = count(config, "head_dim", hidden // heads)
    return width * 2 * count(config, "num_key_value_heads", heads) * head


def _row_token_bytes(config: dict[str, Any], width: int, kv_cache: str) -> int:
    """Memory of one token in evaluation: keys and values of every layer, and one layer's work."""
    layers = count(config, "num_hidden_layers")
    if kv_cache == "offloaded" and width < 4:
        layers = 2  # the one that computes, and the next one, which is being copied
    hidden = count(config, "hidden_size")
    work = 4 * hidden + 3 * count(config, "intermediate_size", 4 * hidden)
    return cached_token_bytes(config, width) * layers + width * work


def _memory_bytes() -> int:
    if device.compute() == "cpu":
        return int(psutil.virtual_memory().available)
    return hardware_speed.first_gpu().free_bytes
