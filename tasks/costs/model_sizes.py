"""A base's sizes as the training step has them, from config.json and the weights' headers alone.

With them the memory plan (tasks.costs.memory_plan) is known before anything is loaded, and without
importing torch. tests/costs/test_model_sizes.py compares them with those of loaded models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any

from tasks.contracts.recipe import Recipe
from tasks.costs.memory_plan import Linear, Shape, shape_from
from tasks.models import compatibility
from tasks.models.config_checks import count
from tasks.models.prepared_base import BaseFolder
from tasks.models.safetensors_headers import Shapes

ELEMENT_BYTES = 2  # of a number on a GPU
# Linear layers of the known architectures by the tensor that they read, in the order of a forward pass.
READERS = (
    ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    ("o_proj", "dense"),
    ("gate_proj", "up_proj", "gate_up_proj"),
    ("down_proj", "fc2"),
)
PHI_READERS = (
    ("q_proj", "k_proj", "v_proj", "fc1"),
    ("dense",),
    ("fc2",),
)  # attention and MLP read the same input
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class ModelSizes:
    """Sizes that a run's time depends on; numbers of weights, where no other unit is named."""

    parameters: int
    linear: int  # of all linear layers that are quantized and adapted
    adapter: int
    layers: int
    hidden: int
    mlp: int
    vocabulary: int

    @classmethod
    def of(cls, recipe: Recipe, base: BaseFolder) -> ModelSizes:
        """From a base's config and headers. Raises BaseModelError when they cannot be read."""
        tensors, config = base.tensors, base.config
        layers, hidden = compatibility.Layers.of(tensors), count(config, "hidden_size")
        return cls(
            sum(map(prod, tensors.values())),
            sum(map(prod, layers.inner.values())),
            sum(recipe.adapter.r * sum(shape) for shape in layers.adapted(recipe).values()),
            count(config, "num_hidden_layers"),
            hidden,
            count(config, "intermediate_size", 4 * hidden),
            count(config, "vocab_size"),
        )


def on_fast_path(recipe: Recipe, config: dict[str, Any]) -> bool:
    """Whether training on a GPU takes the fast path, whose memory and time are modelled.

    As far as recipe and config tell: the fast path looks at the loaded model again.
    """
    return (
        config.get("model_type") in compatibility.SUPPORTED_MODEL_TYPES
        and not config.get("attn_logit_softcapping")
        and not config.get("use_bidirectional_attention")
        and recipe.training.memory != "plain"
        and recipe.training.packing
        and recipe.base.quantization in {"nf4", "none"}
        and recipe.adapter.kind == "lora"
        and not recipe.adapter.lora_dropout
    )


def shape_of(recipe: Recipe, config: dict[str, Any], tensors: Shapes) -> Shape | None:
    """The sizes of a micro-batch's training step on a GPU; None where no numbered layers are found."""
    layers = compatibility.Layers.of(tensors)
    first, depth = _first(layers.inner), _count(layers.inner)
    hidden = count(config, "hidden_size")
    if not first or not hidden:
        return None
    outer = {name: prod(shape) * ELEMENT_BYTES for name, shape in layers.others.items()}
    heads = sum(size for name, size in outer.items() if "embed" not in name.rpartition(".")[2])
    return shape_from(
        _pattern(first, layers.adapted(recipe), str(config.get("model_type"))),
        layers=depth,
        hidden=hidden,
        heads=count(config, "num_attention_heads", 1),
        norms=sum(_is_norm(name, shape, hidden) for name, shape in tensors.items()),
        other_bytes=sum(outer.values()),
        # A head that is no tensor of its own is the embedding, which must then stay on the GPU.
        embedding_bytes=sum(outer.values()) - heads if heads else 0,
        element_bytes=ELEMENT_BYTES,
        quantized=recipe.base.quantization == "nf4",
        rank=recipe.adapter.r,
        optimizer=recipe.training.optim,
        tokens=recipe.training.per_device_train_batch_size * recipe.training.max_length,
    )


def _first(inner: Shapes) -> Shapes:
    """The linear layers of the first decoder layer."""
    return {
        n: shape for n, shape in inner.items() if (match := _LAYER.search(n)) and match[1] == "0"
    }


def _count(inner: Shapes) -> int:
    return 1 + max((int(match[1]) for name in inner if (match := _LAYER.search(name))), default=-1)


def _pattern(first: Shapes, adapted: Shapes, model_type: str) -> list[list[Linear]]:
    groups = PHI_READERS if model_type == "phi" else READERS
    unsorted = {name.rpartition(".")[2]: name for name in first}
    names = [[unsorted.pop(name) for name in group if name in unsorted] for group in groups]
    names += [[name] for name in unsorted.values()]
    return [
        [Linear(first[name][1], first[name][0], name in adapted) for name in group]
        for group in names
        if group
    ]


def _is_norm(name: str, shape: tuple[int, ...], hidden: int) -> bool:
    match = _LAYER.search(name)
    return bool(match and match[1] == "0") and name.endswith(".weight") and shape == (hidden,)
