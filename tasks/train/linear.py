"""Linear layers with their LoRA adapters (Hu et al. 2021, arXiv:2106.09685), as one operation.

    y_i = x W_i^T + b_i + s (x A_i^T) B_i^T          for all layers i that read the same x

Stock parts make several passes over x, y and their gradients for the adapter alone. Here x is read
once for all A_i, and the base product accumulates onto the adapter's inside the matrix product; in
the backward pass the same for x's gradient. Products run in x's type, with the adapter's weights
rounded to it, and add up in float32; the adapter's gradients leave in float32.

A compiler sees one opaque operation, the same on every device: there is a kernel for each part
already, and none of them could be fused with what stands around.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NF4_PARTS = 5  # packed weights, their scales in 8 bits, the scales' scales, code and offset
NF4_BLOCK, SCALE_BLOCK = 64, 256


@dataclass(frozen=True)
class Frozen:
    """A base layer's weight as tensors: itself, or the five of a doubly quantized NF4 weight."""

    parts: tuple[Tensor, ...]
    bias: Tensor | None
    shape: tuple[int, int]  # out, in


def frozen(layer: Any) -> Frozen:
    """What a base layer computes with. Raises ValueError for a layer it does not know."""
    weight, bias = layer.weight.detach().as_subclass(Tensor), layer.bias
    bias = None if bias is None else bias.detach()
    if type(layer) is torch.nn.Linear:
        return Frozen((weight,), bias, (layer.out_features, layer.in_features))
    if type(layer).__name__ != "Linear4bit":
        raise ValueError(f"a base layer of type {type(layer).__name__}")
    state = layer.weight.quant_state
    if state.quant_type != "nf4" or not state.nested or state.blocksize != NF4_BLOCK:
        raise ValueError(f"{state.quant_type} weights in blocks of {state.blocksize}")
    if state.state2.blocksize != SCALE_BLOCK:
        raise ValueError(f"scales quantized in blocks of {state.state2.blocksize}")
    parts = (weight, state.absmax, state.state2.absmax, state.state2.code, state.offset)
    return Frozen(parts, bias, (layer.out_features, layer.in_features))


def wide(parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight [out, in] in `dtype`: the very values that bitsandbytes computes with."""
    if len(parts) == 1:
        return parts[0]
    packed, absmax, scales, code, offset = parts
    ops = torch.ops.bitsandbytes
    full = ops.dequantize_blockwise.default(absmax, scales, code, SCALE_BLOCK, torch.float32)
    full += offset
    found: Tensor = ops.dequantize_4bit.default(packed, full, NF4_BLOCK, "nf4", list(shape), dtype)
    return found


@torch.library.custom_op("precis::adapted", mutates_args=())
def adapted(
    x: Tensor,
    parts: list[Tensor],
    biases: list[Tensor],
    down: list[Tensor],
    up: list[Tensor],
    scale: float,
) -> list[Tensor]:
    """[s x A^T of all layers side by side [tokens, ranks], y_1 [..., out_1], y_2, ...].

    `x` is [..., in]; `parts` are all layers' weights, one tensor a layer or NF4_PARTS; `biases` one
    a layer or none; `down` the A_i [rank, in], `up` the B_i [out, rank].
    """
    flat = x.reshape(-1, x.shape[-1])
    inner = flat.new_empty(flat.shape[0], sum(a.shape[0] for a in down))
    inner.addmm_(flat, torch.cat(down).to(x.dtype).t(), beta=0, alpha=scale)
    found, start = [inner], 0
    for i, b in enumerate(up):
        rank, out = b.shape[1], b.shape[0]
        weight = wide(_of(parts, i, up), (out, flat.shape[1]), x.dtype).t()
        if rank:
            part, narrow = inner[:, start : start + rank], b.to(x.dtype).t()
            y = torch.addmm(biases[i], part, narrow) if biases else torch.mm(part, narrow)
            y.addmm_(flat, weight)
        else:
            y = torch.addmm(biases[i], flat, weight) if biases else torch.mm(flat, weight)
        found.append(y.view(*x.shape[:-1], out))
        start += rank
    return found


@adapted.register_fake
def _(
    x: Tensor,
    parts: list[Tensor],
    biases: list[Tensor],
    down: list[Tensor],
    up: list[Tensor],
    scale: float,
) -> list[Tensor]:
    tokens = x.numel() // x.shape[-1]
    inner = x.new_empty(tokens, sum(a.shape[0] for a in down))
    return [inner, *(x.new_empty(*x.shape[:-1], b.shape[0]) for b in up)]


@torch.library.custom_op("precis::adapted_backward", mutates_args=())
def adapted_backward(
    grads: list[Tensor],
    x: Tensor,
    inner: Tensor,
    parts: list[Tensor],
    down: list[Tensor],
    up: list[Tensor],
    scale: float,
) -> list[Tensor]:
    """[x's gradient, that of all A_i on top of each other, those of B_1, B_2, ...]."""
    flat = x.reshape(-1, x.shape[-1])
    outer = torch.empty_like(inner)
    rows = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
    start = 0
    for row, b in zip(rows, up, strict=True):
        outer[:, start : start + b.shape[1]].addmm_(row, b.to(x.dtype), beta=0, alpha=scale)
        start += b.shape[1]
    back = outer @ torch.cat(down).to(x.dtype)
    for i, row in enumerate(rows):
        back.addmm_(row, wide(_of(parts, i, up), (row.shape[1], flat.shape[1]), x.dtype))
    found, start = [back.view(x.shape), _product(outer.t(), flat)], 0
    for row, b in zip(rows, up, strict=True):
        found.append(_product(row.t(), inner[:, start : start + b.shape[1]]))
        start += b.shape[1]
    return found


@adapted_backward.register_fake
def _(
    grads: list[Tensor],
    x: Tensor,
    inner: Tensor,
    parts: list[Tensor],
    down: list[Tensor],
    up: list[Tensor],
    scale: float,
) -> list[Tensor]:
    into = x.new_empty(inner.shape[1], x.shape[-1], dtype=torch.float32)
    return [x.new_empty(x.shape), into, *(torch.empty_like(b, dtype=torch.float32) for b in up)]


def _of(parts: list[Tensor], i: int, layers: list[Tensor]) -> list[Tensor]:
    each = len(parts) // len(layers)
    return parts[i * each : (i + 1) * each]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32: the sum over all tokens is not rounded to 16 bits."""
    if a.dtype != torch.float32 and a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a.float() @ b.float()).contiguous()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, parts, biases, down, up, ctx.scale = inputs
    ctx.counts = (len(parts), len(biases), len(down))
    ctx.save_for_backward(x, output[0], *parts, *down, *up)


def _differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    x, inner, *rest = ctx.saved_tensors
    n_parts, n_biases, layers = ctx.counts
    parts, down, up = rest[:n_parts], rest[n_parts : n_parts + layers], rest[-layers:]
    back, into, *onto = adapted_backward(grads[1:], x, inner, parts, down, up, ctx.scale)
    split = list(into.split([a.shape[0] for a in down]))
    return back, [None] * n_parts, [None] * n_biases, split, onto, None


adapted.register_autograd(_differentiate, setup_context=_keep)
