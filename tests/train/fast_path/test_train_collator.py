"""Batches of one shape, and the loss of their completion tokens."""

from __future__ import annotations

import itertools
from typing import Any

import numeric
import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tasks.models.encoding import IGNORED
from tasks.train.fast_path import chunked_loss
from tasks.train.fast_path.collator import FixedShapeCollator, max_rows_per_batch


def packed(*lengths: int) -> dict[str, Any]:
    """A packed sequence of rows; the last two tokens of each are its completion."""
    ids, labels = [], []
    for length in lengths:
        row = list(range(10, 10 + length))
        ids += row
        labels += [IGNORED] * (length - 2) + row[-2:]
    return {"input_ids": ids, "labels": labels, "seq_lengths": list(lengths)}


def collator() -> FixedShapeCollator:
    inner = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    return FixedShapeCollator(inner, tokens=40, rows=5, pad=0)


@pytest.mark.parametrize(
    "batch", [[packed(9, 8), packed(20)], [packed(5)], [packed(10, 10), packed(15, 5)]]
)
def test_every_batch_has_the_same_shape(batch: list[dict[str, Any]]) -> None:
    """Full or not, of few rows or many; what fills it up is a row of its own that is not learned."""
    found = collator()(batch)
    shapes = {name: tuple(v.shape) for name, v in found.items() if isinstance(v, torch.Tensor)}
    assert shapes["input_ids"] == shapes["labels"] == shapes["position_ids"] == (1, 40)
    assert shapes["bounds"] == (7,)
    used = sum(len(part["input_ids"]) for part in batch)
    rows = [length for part in batch for length in part["seq_lengths"]]
    assert found["real_tokens"] == used
    bounds = found["bounds"].tolist()
    assert [b - a for a, b in itertools.pairwise(bounds)][: len(rows)] == rows
    assert bounds[len(rows) + 1 :] == [40] * (6 - len(rows))
    assert found["row_count"] == len(rows) + (used < 40)
    assert found["longest"] == max([*rows, 40 - used])
    assert (found["labels"][0, used:] == IGNORED).all()
    assert found["position_ids"][0, used:].tolist() == list(range(40 - used))


def test_learned_tokens_are_the_completions_shifted() -> None:
    """Where a completion token is predicted, and which; filled up to a multiple of 64."""
    found = collator()([packed(9, 8), packed(20)])
    learned = found["learned"] != IGNORED
    assert found["learned"].shape == (64,)
    assert found["learned_at"][learned].tolist() == [6, 7, 14, 15, 34, 35]
    assert found["learned"][learned].tolist() == [17, 18, 16, 17, 28, 29]


def test_more_than_was_counted_is_refused() -> None:
    """A batch that does not fit would change the shape of a step."""
    with pytest.raises(ValueError, match="a batch of 45 tokens in 2 rows"):
        collator()([packed(20), packed(25)])
    with pytest.raises(ValueError, match="in 6 rows where at most 40 in 5"):
        collator()([packed(4, 4, 4), packed(4, 4, 4)])


def test_no_batch_has_more_rows_than_the_fullest_sequences() -> None:
    """The sum over the sequences with most rows."""
    assert max_rows_per_batch([[1, 1], [1, 1, 1], [1]], 2) == 5
    assert max_rows_per_batch([[1, 1]], 4) == 2


@pytest.mark.parametrize("chunk", [2**24, 64 * 50])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_lean_loss_is_cross_entropy(
    chunk: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient, whole or in chunks, with tokens that do not count; against float64."""
    monkeypatch.setattr(chunked_loss, "CHUNK_LOGITS", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(150, 16, requires_grad=True)
    weight, bias = torch.randn(50, 16), torch.randn(50) if with_bias else None
    targets = torch.randint(50, (150,))
    targets[::7] = IGNORED
    ours = chunked_loss.token_loss(hidden, weight, bias, targets)
    exact = hidden.detach().double().requires_grad_()
    logits = torch.nn.functional.linear(
        exact, weight.double(), None if bias is None else bias.double()
    )
    reference = torch.nn.functional.cross_entropy(
        logits, targets, ignore_index=IGNORED, reduction="sum"
    )
    numeric.assert_close(ours, reference, numeric.LOSS)
    (gradient,) = torch.autograd.grad(ours * 0.5, hidden)
    (exact_gradient,) = torch.autograd.grad(reference * 0.5, exact)
    numeric.assert_close(gradient, exact_gradient, numeric.PRODUCTS)


def test_half_precision_keeps_small_gradients() -> None:
    """In float16 the gradient of rare words is not flushed to zero.

    Each of 3,999 words has a probability of 1.5e-8, below float16's smallest step of 6e-8; together
    they are all that the gradient of a well-learned target consists of.
    """
    torch.manual_seed(0)
    hidden = (torch.randn(8, 16) * 0.1).half().requires_grad_()
    weight, bias = (torch.randn(4000, 16) * 0.1 + 0.1).half(), torch.zeros(4000).half()
    targets = torch.full((8,), 7)
    bias[7] = 18.0
    gradients = []
    for dtype in (torch.float16, torch.float64):
        x = hidden.detach().to(dtype).requires_grad_()
        loss = chunked_loss.token_loss(x, weight.to(dtype), bias.to(dtype), targets)
        gradients += torch.autograd.grad(loss * 1024, x)  # as a gradient scaler does
    # A probability, scaled, has two digits in float16; their errors have mixed signs.
    numeric.assert_close(gradients[0], gradients[1], within=1e-2)
