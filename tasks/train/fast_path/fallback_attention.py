"""Attention over packed rows without flash kernels: torch's memory-efficient one, or row by row.

All tensors are [tokens, heads, width]; `bounds` are those of the rows, without padding. Both are called
inside a custom operation, below autograd, so their gradients are computed here.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tasks.serving.summarizer.kernels import CAUSAL, repeat_heads


def _sum_heads(grad: Tensor, heads: int) -> Tensor:
    """The backward pass of `repeat_heads` for keys or values."""
    if grad.shape[1] == heads:
        return grad
    return grad.unflatten(1, (heads, -1)).sum(2)


def efficient_out(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, size: int, scale: float
) -> Tensor:
    """The memory-efficient kernel; `size` is the longest row's length."""
    output: Tensor = _efficient(*repeat_heads(query, key, value), bounds, size, scale, False)[0][0]
    return output


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, size: int, scale: float, sums: bool
) -> Any:
    return torch.ops.aten._efficient_attention_forward(
        q[None], k[None], v[None], None, bounds, bounds, size, size, 0.0, CAUSAL, sums, scale=scale
    )


def efficient_back(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    size: int,
    scale: float,
) -> list[Tensor]:
    """Its gradients of query, key and value."""
    q, k, v = repeat_heads(query, key, value)
    # The shape of its sums depends on the batch, so they are not kept but computed again.
    out, sums, seed, offset, *_ = _efficient(q, k, v, bounds, size, scale, True)
    gradients = torch.ops.aten._efficient_attention_backward(
        grad.contiguous()[None],
        q[None],
        k[None],
        v[None],
        None,
        out,
        bounds,
        bounds,
        size,
        size,
        sums,
        0.0,
        seed,
        offset,
        CAUSAL,
        False,
        scale=scale,
    )
    dq, dk, dv = (x[0] for x in gradients[:3])
    heads = key.shape[1]
    return [x.contiguous() for x in (dq, _sum_heads(dk, heads), _sum_heads(dv, heads))]


def _rows(bounds: Tensor) -> list[tuple[int, int]]:
    return [(start, end) for start, end in itertools.pairwise(bounds.tolist()) if end > start]


def rows_out(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float, behind: int
) -> Tensor:
    """Row by row; a token sees at most `behind` before it (-1: all)."""
    q, k, v = repeat_heads(query, key, value)
    rows = []
    for start, end in _rows(bounds):
        a, b, c = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        mask = _visible(end - start, behind, q.device)
        output = scaled_dot_product_attention(a, b, c, attn_mask=mask, scale=scale)
        rows.append(output[0].transpose(0, 1))
    return torch.cat(rows).contiguous()


def rows_back(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    scale: float,
    behind: int,
) -> list[Tensor]:
    """The gradients, by the formulas: autograd records nothing inside a custom operation."""
    q, k, v = repeat_heads(query, key, value)
    gradients = [torch.empty_like(x) for x in (q, k, v)]
    for start, end in _rows(bounds):
        a, b, c, d = (x[start:end].transpose(0, 1).float() for x in (q, k, v, grad))
        scores = (a @ b.mT * scale).masked_fill(
            ~_visible(end - start, behind, q.device), -torch.inf
        )
        weights = scores.softmax(-1)
        d_weights = d @ c.mT
        d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdim=True)) * scale
        for into, part in zip(
            gradients, (d_scores @ b, d_scores.mT @ a, weights.mT @ d), strict=True
        ):
            into[start:end] = part.transpose(0, 1).to(into.dtype)
    heads = key.shape[1]
    dq, dk, dv = gradients
    return [dq, *(_sum_heads(x, heads).contiguous() for x in (dk, dv))]


def _visible(length: int, behind: int, device: torch.device) -> Tensor:
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask if behind < 0 else mask.triu(-behind)
