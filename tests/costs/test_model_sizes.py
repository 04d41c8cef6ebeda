"""What headers tell of a base is what a loaded model shows."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import shapes
import tiny
import torch

from tasks.costs import memory_plan, model_sizes
from tasks.models import compatibility
from tasks.train.fast_path import install, model_call, varlen_attention


@pytest.mark.parametrize("model_type", sorted(compatibility.SUPPORTED_MODEL_TYPES - {"gemma2"}))
def test_headers_tell_what_the_loaded_model_shows(model_type: str) -> None:
    """All sizes that memory and time are computed from, for every architecture that is known."""
    model = shapes.make_model(model_type).to(torch.bfloat16)
    model.set_attn_implementation(varlen_attention.register())
    core = model_call.core_of(model)
    named = install.linears(core.layers[0])
    pattern = install.pattern_of(core.layers[0], functools.partial(model_call.watch, model))
    from_model = memory_plan.shape_of(
        core,
        model.get_output_embeddings(),
        [
            [
                memory_plan.Linear(named[n].in_features, named[n].out_features, "v" in n)
                for n in group
            ]
            for group in pattern
        ],
        rank=4,
        optimizer="adamw_torch",
        tokens=2 * 256,
    )
    targets = [name for name in shapes.TARGETS[model_type] if "v" in name]
    recipe = tiny.make_recipe(
        tiny.Path("base"),
        base={"quantization": "none"},
        adapter={"r": 4, "target_modules": targets},
    )
    state = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")  # as it is saved
    from_config = model_sizes.shape_of(recipe, model.config.to_dict(), state)
    assert from_config == from_model
    assert model_sizes.on_fast_path(recipe, model.config.to_dict())


def test_capped_scores_are_not_on_the_fast_path() -> None:
    """As training itself finds, Gemma 2 takes TRL's path."""
    config = shapes.make_model("gemma2").config.to_dict()
    assert not model_sizes.on_fast_path(tiny.make_recipe(tiny.Path("base")), config)


def test_four_bits_are_of_the_recipe() -> None:
    """The headers know nothing of quantization: base.quantization says it."""
    model = shapes.make_model("llama")
    state = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    lora, four = (
        model_sizes.shape_of(
            tiny.make_recipe(tiny.Path("b"), base={"quantization": q}), config, state
        )
        for q in ("none", "nf4")
    )
    assert lora and four  # noqa: PT018
    assert four == replace(lora, quantized=True)
