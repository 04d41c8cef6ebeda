"""Load the base that is trained, and choose how: by the fast path's plan, or as TRL trains it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from tasks.contracts.errors import TrainingError
from tasks.contracts.recipe import Recipe
from tasks.models import loading, quantization
from tasks.models.prepared_base import PreparedBase
from tasks.serving.summarizer import served_attention
from tasks.train import attention
from tasks.train.fast_path import compilation, setup, varlen_attention, weight_sharding


def load(base: PreparedBase, recipe: Recipe) -> tuple[Any, setup.Choice | None]:
    """The causal model without an adapter, and the fast path's choice; None: TRL's own path.

    Raises TrainingError when the GPU's memory does not hold it.
    """
    plain_attention = attention.implementation(base.config) if recipe.training.packing else None
    # Capped scores, and architectures that no test covers, take the plain path.
    supported = (
        loading.device() != "cpu"
        and plain_attention is not None
        and not base.config.get("attn_logit_softcapping")
    )
    shards = weight_sharding.shard_count(recipe, base)
    model = _load(
        base, recipe, varlen_attention.register() if supported else plain_attention, shards
    )
    if not supported:
        return model, None
    choice = setup.choose_plan(model, recipe, shards)
    if choice is None:
        use_plain_attention(model, base, recipe)
    elif choice[0].resident:
        quantization.dequantize_once(model)
    return model, choice


def _load(base: PreparedBase, recipe: Recipe, attention_name: str | None, shards: int) -> Any:
    """The model, its weights sharded over ranks where `shards` is above 1."""
    dtype, kind = loading.compute_dtype(), recipe.base.quantization
    sharded = weight_sharding.sharded_loading(base) if shards > 1 else contextlib.nullcontext()
    try:
        with sharded:
            model = loading.load_base(base.path, kind, dtype, attention_name)
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(
            "the base model does not fit the GPU; set base.quantization: nf4, name a smaller "
            "base.model, or train on more devices, each with a part of it (training.base_weights: "
            f"sharded, docs/devices.md), or on GPUs with more memory ({error})"
        ) from error
    if shards > 1:
        try:
            # Needs room for one layer twice.
            weight_sharding.gather_before_each_layer(model)
        except torch.cuda.OutOfMemoryError as error:
            raise compilation.out_of_memory(error, shards) from error
    return model


def use_plain_attention(model: Any, base: PreparedBase, recipe: Recipe) -> None:
    """Give the model back the attention that it has outside the fast path."""
    packed = attention.implementation(base.config) if recipe.training.packing else None
    model.set_attn_implementation(packed or served_attention(base.path) or "sdpa")
