"""Linear layers with their LoRA adapters (Hu et al. 2021, arXiv:2106.09685), as one operation.

    y_i = x W_i^T + b_i + s (x A_i^T) B_i^T          for all layers i that read the same x

PEFT's layers make several passes over x, y and their gradients for the adapter alone. Here x is read
once for all A_i, and the base product is added to the adapter's inside the matrix product; in the
backward pass the same for x's gradient. Products run in x's type, with the adapter's weights rounded
to it, and are summed in float32; the adapter's gradients are float32.

A compiler sees one opaque operation, the same on every device: each part has a kernel already, and
none of them could be fused with the operations around it.

Considered: Liger, which has no LoRA layer, and Unsloth, whose step took 1.1 times as long on
Llama-2-7B's shape and 4 times on Phi-2's (docs/benchmarks.md; reasons in docs/devices.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.train.fast_path import nf4_kernel
from tasks.train.fast_path.custom_op import operation


@dataclass(frozen=True)
class Frozen:
    """A base layer's weight as tensors: itself, or the five of a doubly quantized NF4 weight."""

    parts: tuple[Tensor, ...]
    bias: Tensor | None
    shape: tuple[int, int]  # out, in


def frozen(layer: Any) -> Frozen:
    """The weights of a base layer. Raises ValueError for a kind of layer that is not supported."""
    weight, bias = layer.weight.detach().as_subclass(Tensor), layer.bias
    bias = None if bias is None else bias.detach()
    if type(layer) is torch.nn.Linear:
        return Frozen((weight,), bias, (layer.out_features, layer.in_features))
    if type(layer).__name__ != "Linear4bit":
        raise ValueError(f"a base layer of type {type(layer).__name__}")
    state = layer.weight.quant_state
    if state.quant_type != "nf4" or state.blocksize != nf4_kernel.BLOCK:
        raise ValueError(f"{state.quant_type} weights in blocks of {state.blocksize}")
    if not state.nested:
        raise ValueError("nf4 weights whose scales are not quantized")
    if state.state2.blocksize != nf4_kernel.SCALE_BLOCK:
        raise ValueError(f"scales quantized in blocks of {state.state2.blocksize}")
    parts = (weight, state.absmax, state.state2.absmax, state.state2.code, state.offset)
    return Frozen(parts, bias, (layer.out_features, layer.in_features))


def wide(parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight [out, in] in `dtype`: the very values that bitsandbytes computes with."""
    if len(parts) == 1:
        return parts[0]
    return nf4_kernel.wide(parts, shape, dtype)


def adapted(
    x: Tensor,
    parts: list[Tensor],
    biases: list[Tensor],
    down: list[Tensor],
    up: list[Tensor],
    scale: float,
) -> tuple[Tensor, ...]:
    """(y_1 [..., out_1], y_2, ...) for x [..., in].

    `parts` are all layers' weights, one tensor a layer or the five of NF4; `biases` one a layer or none;
    `down` the A_i [rank, in], `up` the B_i [out, rank].
    """
    counts = (len(parts), len(biases), len(down))
    outputs: tuple[Tensor, ...] = _Adapted.apply(x, scale, counts, *parts, *biases, *down, *up)
    return outputs


def _forward(
    x: Tensor,
    parts: list[Tensor],
    biases: list[Tensor],
    down: list[Tensor],
    up: list[Tensor],
    scale: float,
) -> list[Tensor]:
    """[s x A^T of all layers side by side [tokens, ranks], all A and B in x's type, y_1, ...]."""
    flat = x.reshape(-1, x.shape[-1])
    ranks = [a.shape[0] for a in down]
    # All at once: two kernels in place of one or two for each of the small matrices.
    narrow = torch.cat([weight.reshape(-1) for weight in (*down, *up)]).to(x.dtype)
    below, above = _split(narrow, ranks, flat.shape[1], [b.shape[0] for b in up])
    inner = flat.new_empty(flat.shape[0], sum(ranks))
    inner.addmm_(flat, below.t(), beta=0, alpha=scale)
    outputs, start = [inner, narrow], 0
    for i, b in enumerate(above):
        out, rank = b.shape
        weight = wide(_of(parts, i, len(up)), (out, flat.shape[1]), x.dtype).t()
        if rank:
            part = inner[:, start : start + rank]
            y = torch.addmm(biases[i], part, b.t()) if biases else torch.mm(part, b.t())
            y.addmm_(flat, weight)
        else:
            y = torch.addmm(biases[i], flat, weight) if biases else torch.mm(flat, weight)
        outputs.append(y.view(*x.shape[:-1], out))
        start += rank
    return outputs


def _forward_fake(
    x: Tensor,
    parts: list[Tensor],
    biases: list[Tensor],
    down: list[Tensor],
    up: list[Tensor],
    scale: float,
) -> list[Tensor]:
    inner = x.new_empty(x.numel() // x.shape[-1], sum(a.shape[0] for a in down))
    narrow = x.new_empty(sum(weight.numel() for weight in (*down, *up)))
    return [inner, narrow, *(x.new_empty(*x.shape[:-1], b.shape[0]) for b in up)]


def _backward(
    grads: list[Tensor],
    x: Tensor,
    inner: Tensor,
    narrow: Tensor,
    parts: list[Tensor],
    ranks: list[int],
    scale: float,
) -> list[Tensor]:
    """[x's gradient, that of all A_i on top of each other, those of B_1, B_2, ...]."""
    flat = x.reshape(-1, x.shape[-1])
    rows = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
    below, above = _split(narrow, ranks, flat.shape[1], [row.shape[1] for row in rows])
    outer = torch.empty_like(inner)
    starts = [sum(ranks[:i]) for i in range(len(ranks))]
    for row, b, start in zip(rows, above, starts, strict=True):
        outer[:, start : start + b.shape[1]].addmm_(row, b, beta=0, alpha=scale)
    back = outer @ below
    for i, row in enumerate(rows):
        back.addmm_(row, wide(_of(parts, i, len(rows)), (row.shape[1], flat.shape[1]), x.dtype))
    onto = [
        _product(row.t(), inner[:, start : start + rank])
        for row, start, rank in zip(rows, starts, ranks, strict=True)
    ]
    return [back.view(x.shape), _product(outer.t(), flat), *onto]


def _backward_fake(
    grads: list[Tensor],
    x: Tensor,
    inner: Tensor,
    narrow: Tensor,
    parts: list[Tensor],
    ranks: list[int],
    scale: float,
) -> list[Tensor]:
    made = {"dtype": torch.float32}
    onto = (x.new_empty(g.shape[-1], r, **made) for g, r in zip(grads, ranks, strict=True))
    return [x.new_empty(x.shape), x.new_empty(sum(ranks), x.shape[-1], **made), *onto]


def _split(
    narrow: Tensor, ranks: list[int], into: int, outs: list[int]
) -> tuple[Tensor, list[Tensor]]:
    """All A_i on top of each other [ranks, into], and the B_i [out, rank]."""
    sizes = [sum(ranks) * into, *(rank * out for rank, out in zip(ranks, outs, strict=True))]
    below, *above = narrow.split(sizes)
    shaped = [b.view(out, rank) for b, out, rank in zip(above, outs, ranks, strict=True)]
    return below.view(sum(ranks), into), shaped


def _of(parts: list[Tensor], i: int, layers: int) -> list[Tensor]:
    each = len(parts) // layers
    return parts[i * each : (i + 1) * each]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32: the sum over all tokens is not rounded to 16 bits."""
    if a.dtype != torch.float32 and a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a.float() @ b.float()).contiguous()


_forward_op = operation(
    "adapted(Tensor x, Tensor[] parts, Tensor[] biases, Tensor[] down, Tensor[] up, float scale)"
    " -> Tensor[]",
    _forward,
    _forward_fake,
)
_backward_op = operation(
    "adapted_backward(Tensor[] grads, Tensor x, Tensor inner, Tensor narrow, Tensor[] parts,"
    " int[] ranks, float scale) -> Tensor[]",
    _backward,
    _backward_fake,
)


class _Adapted(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: float, counts: tuple[int, int, int], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        parts, biases, layers = counts
        start = parts + biases
        weights, down, up = tensors[:parts], tensors[start : start + layers], tensors[-layers:]
        inner, narrow, *outputs = _forward_op(
            x, list(weights), list(tensors[parts:start]), list(down), list(up), scale
        )
        ctx.save_for_backward(x, inner, narrow, *weights)
        ctx.scale, ctx.counts, ctx.ranks = scale, counts, [a.shape[0] for a in down]
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        parts, biases, _ = ctx.counts
        x, inner, narrow, *weights = ctx.saved_tensors
        back, into, *onto = _backward_op(
            list(grads), x, inner, narrow, weights, ctx.ranks, ctx.scale
        )
        return (back, None, None, *[None] * (parts + biases), *into.split(ctx.ranks), *onto)
