"""A base's sizes as the training step has them, from config.json and the weights' headers alone.

So that the one model of memory (tasks.costs.memory_plan) serves before anything is loaded, and where torch
is not imported. tests/costs/test_model_sizes.py holds it to what is found by looking at loaded models.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any

from tasks.contracts.recipe import Recipe
from tasks.costs.memory_plan import Linear, Shape, shape_from
from tasks.models import compatibility
from tasks.models.safetensors_headers import Shapes

ELEMENT_BYTES = 2  # of a number on a GPU
# Linear layers of the known architectures by the tensor that they read, in the order of a forward pass.
READ = (
    ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    ("o_proj", "dense"),
    ("gate_proj", "up_proj", "gate_up_proj"),
    ("down_proj", "fc2"),
)
READ_AT_ONCE = (
    ("q_proj", "k_proj", "v_proj", "fc1"),
    ("dense",),
    ("fc2",),
)  # Phi: beside each other
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def on_fast_path(recipe: Recipe, config: dict[str, Any]) -> bool:
    """Whether training on a GPU takes the path whose memory and time are modelled (train.fast).

    As far as recipe and config tell; the loaded model has the last word.
    """
    return (
        config.get("model_type") in compatibility.KNOWN
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
    first, count = _first(layers.inner), _count(layers.inner)
    if not first:
        return None
    hidden = int(config["hidden_size"])
    outer = {name: prod(shape) * ELEMENT_BYTES for name, shape in layers.others.items()}
    heads = sum(size for name, size in outer.items() if "embed" not in name.rpartition(".")[2])
    return shape_from(
        _pattern(first, layers.adapted(recipe), str(config.get("model_type"))),
        layers=count,
        hidden=hidden,
        heads=int(config.get("num_attention_heads") or 1),
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
    return {n: shape for n, shape in inner.items() if (at := _LAYER.search(n)) and at[1] == "0"}


def _count(inner: Shapes) -> int:
    return 1 + max((int(at[1]) for name in inner if (at := _LAYER.search(name))), default=-1)


def _pattern(first: Shapes, adapted: Shapes, model_type: str) -> list[list[Linear]]:
    groups = READ_AT_ONCE if model_type == "phi" else READ
    left = {name.rpartition(".")[2]: name for name in first}
    found = [[left.pop(name) for name in group if name in left] for group in groups]
    found += [[name] for name in left.values()]
    return [
        [Linear(first[name][1], first[name][0], name in adapted) for name in group]
        for group in found
        if group
    ]


def _is_norm(name: str, shape: tuple[int, ...], hidden: int) -> bool:
    at = _LAYER.search(name)
    return bool(at and at[1] == "0") and name.endswith(".weight") and shape == (hidden,)
