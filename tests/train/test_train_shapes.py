"""Packed rows are computed as each architecture's own eager attention computes padded ones."""

from __future__ import annotations

import itertools
from typing import Any

import numeric
import pytest
import shapes
import torch

from tasks.models import compatibility
from tasks.models.encoding import IGNORED
from tasks.train import attention
from tasks.train.trainer import completion_loss

LENGTHS = (40, 7, 23)  # longer than the window, and shorter
# What has no effect on the function would not be seen to be missing.
QUIRKS = [
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"layer_types": ["full_attention"] * 2, "use_sliding_window": False}),
    ("phi3", {"sliding_window": None}),
    ("gemma2", {"layer_types": ["full_attention"] * 2}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"query_pre_attn_scalar": 32}),
    ("gemma3_text", {"layer_types": ["full_attention"] * 2}),
    ("gemma3_text", {"query_pre_attn_scalar": 32}),
]


def rows() -> list[tuple[list[int], list[int]]]:
    """Ids and labels; the first third of a row is prompt."""
    found = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(3, 500, (length,), generator=torch.Generator().manual_seed(number))
        found.append((ids.tolist(), [IGNORED] * (length // 3) + ids[length // 3 :].tolist()))
    return found


def packed() -> dict[str, Any]:
    """One sequence with bounds and positions, as TRL's collator makes it."""
    ids, labels = zip(*rows(), strict=True)
    bounds = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)
    return {
        "input_ids": torch.tensor([[i for row in ids for i in row]]),
        "labels": torch.tensor([[label for row in labels for label in row]]),
        "position_ids": torch.tensor([[i for length in LENGTHS for i in range(length)]]),
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(LENGTHS),
        "max_length_k": max(LENGTHS),
    }


def padded() -> dict[str, Any]:
    """The same rows below each other."""
    width = max(LENGTHS)
    found: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for ids, labels in rows():
        rest = width - len(ids)
        found["input_ids"].append(ids + [0] * rest)
        found["labels"].append(labels + [IGNORED] * rest)
        found["attention_mask"].append([1] * len(ids) + [0] * rest)
    return {name: torch.tensor(value) for name, value in found.items()}


def computed(model: Any, name: str, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The loss, and its gradient by parameter."""
    model.set_attn_implementation(name)
    model.zero_grad()
    loss = completion_loss(model, batch)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("model_type", shapes.each(sorted(compatibility.SUPPORTED_MODEL_TYPES)))
def test_packed_rows_are_the_model_s_own_eager_attention(model_type: str) -> None:
    """Loss and every gradient of a padded batch, but for float32's rounding."""
    model = shapes.make_model(model_type).train()
    expected, gradients = computed(model, "eager", padded())
    name = attention.implementation(model.config.to_dict())
    assert name == attention.NAME
    found, ours = computed(model, name, packed())
    numeric.assert_close(found, expected, numeric.LOSS)
    # A key's bias shifts all scores of a query alike, so its exact gradient is 0 and what is computed
    # is rounding alone: a gradient is measured by at least a thousandth of the largest one.
    least = 1e-3 * max(float(gradient.abs().max()) for gradient in gradients.values())
    for parameter, gradient in gradients.items():
        size = max(float(gradient.abs().max()), least)
        numeric.assert_close(ours[parameter], gradient, numeric.MODEL, size, parameter)


@pytest.mark.parametrize(("model_type", "without"), QUIRKS)
def test_each_quirk_is_seen_by_the_test_above(model_type: str, without: dict[str, Any]) -> None:
    """Leaving out a window, a cap or a scale changes the loss by far more than is tolerated."""
    loss, _ = computed(shapes.make_model(model_type), attention.register(), packed())
    other, _ = computed(shapes.make_model(model_type, **without), attention.register(), packed())
    assert numeric.relative_error(other, loss) > 10 * numeric.LOSS


def test_transformers_sdpa_leaves_the_cap_out() -> None:
    """The reason for not using it with Gemma 2; once this fails, we may."""
    model = shapes.make_model("gemma2")
    expected, _ = computed(model, "eager", padded())
    found, _ = computed(model, "sdpa", padded())
    assert numeric.relative_error(found, expected) > 10 * numeric.LOSS


def test_an_unknown_architecture_keeps_its_own_attention() -> None:
    """Ours may lack what it needs, and would not say so; theirs keeps packed rows apart as well."""
    model = shapes.make_model("olmo2")
    assert attention.implementation(model.config.to_dict()) is None
    both_ways = {"model_type": "gemma3_text", "use_bidirectional_attention": True}
    assert attention.implementation(both_ways) is None
    expected, _ = computed(model, "eager", padded())
    found, _ = computed(model, "sdpa", packed())
    numeric.assert_close(found, expected, numeric.LOSS)
