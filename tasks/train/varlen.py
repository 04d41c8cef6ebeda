"""Causal attention over packed rows as one operation that a compiler leaves alone.

torch's own kernels, no package and no download: FlashAttention-2 (Dao 2023, arXiv:2307.08691) on
GPUs from compute capability 8.0, the memory-efficient kernel (Rabe and Staats 2021,
arXiv:2112.05682) on older ones; on a CPU row by row. How many rows there are and how long the
longest is come in a tensor on the CPU: as numbers they would have a compiled layer compiled anew for
each batch.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tasks.train.operation import operation

NAME = "precis_steady_rows"
FLASH, EFFICIENT, BY_ROW = "flash", "efficient", "by row"
CAUSAL = 1  # the efficient kernel's mask: causal from the top left of each row
WIDEST_FLASH_HEAD = 256


def register() -> str:
    """Make `steady_rows` known to transformers; returns its `attn_implementation` name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, steady_rows)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # the bounds say it all
    return NAME


def kernel_for(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Which kernel serves heads of this width; torch's switch for flash kernels is heeded.

    To be asked outside a compiled layer.
    """
    if device.type != "cuda":
        return BY_ROW
    half = dtype in {torch.bfloat16, torch.float16} and width <= WIDEST_FLASH_HEAD
    able = half and torch.cuda.get_device_capability(device) >= (8, 0)
    return FLASH if able and torch.backends.cuda.flash_sdp_enabled() else EFFICIENT


def steady_rows(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: Tensor,
    rows_kernel: str,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row of one packed sequence, in transformers' form.

    `query` is [1, heads, tokens, width], `key` and `value` may have fewer heads; `cu_seq_lens_q`
    holds the rows' bounds (int32) and what fills it up; `max_length_q`, on the CPU, two integers:
    the longest row and how many rows there are; `rows_kernel` is what `kernel_for` said. Returns
    [1, tokens, heads, width].
    """
    if dropout:
        raise ValueError("attention dropout is not served here")
    width = query.shape[-1]
    q, k, v = (x[0].transpose(0, 1).to(value.dtype).contiguous() for x in (query, key, value))
    found: Tensor = _Attend.apply(
        q,
        k,
        v,
        cu_seq_lens_q,
        max_length_q,
        width**-0.5 if scaling is None else float(scaling),
        -1 if sliding_window is None else sliding_window - 1,
        BY_ROW if sliding_window is not None and rows_kernel == EFFICIENT else rows_kernel,
    )
    return found[None], None


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    sizes: Tensor,
    scale: float,
    behind: int,
    kernel: str,
) -> list[Tensor]:
    """[output [tokens, heads, width], log-sum-exp [heads, tokens] or nothing where not kept].

    `query` is [tokens, heads, width]; a token sees itself and at most `behind` before it in its row
    (-1: all of them).
    """
    size, bounds = _real(bounds, sizes)
    if kernel == BY_ROW:
        return [_rows_out(query, key, value, bounds, scale, behind), _no_sums(query)]
    if kernel == EFFICIENT:
        q, k, v = _same_heads(query, key, value)
        return [_efficient(q, k, v, bounds, size, scale, False)[0][0], _no_sums(query)]
    out, sums, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        bounds,
        bounds,
        size,
        size,
        0.0,
        behind < 0,
        False,
        scale=scale,
        window_size_left=behind,
        window_size_right=0,
    )
    return [out, sums]


def _forward_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    sizes: Tensor,
    scale: float,
    behind: int,
    kernel: str,
) -> list[Tensor]:
    kept = (query.shape[1], query.shape[0]) if kernel == FLASH else (0,)
    return [torch.empty_like(query), query.new_empty(kept, dtype=torch.float32)]


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    bounds: Tensor,
    sizes: Tensor,
    scale: float,
    behind: int,
    kernel: str,
) -> list[Tensor]:
    """[gradients of query, key and value]."""
    size, bounds = _real(bounds, sizes)
    if kernel == BY_ROW:
        return _rows_back(grad, query, key, value, bounds, scale, behind)
    if kernel == EFFICIENT:
        return _efficient_back(grad, query, key, value, bounds, size, scale)
    nothing = torch.zeros(2, dtype=torch.uint64, device=query.device)  # dropout's state: none
    return list(
        torch.ops.aten._flash_attention_backward(
            grad.contiguous(),
            query,
            key,
            value,
            out,
            sums,
            bounds,
            bounds,
            size,
            size,
            0.0,
            behind < 0,
            nothing,
            torch.empty(0, device=query.device),
            scale=scale,
            window_size_left=behind,
            window_size_right=0,
        )
    )


def _backward_fake(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    bounds: Tensor,
    sizes: Tensor,
    scale: float,
    behind: int,
    kernel: str,
) -> list[Tensor]:
    return [torch.empty_like(x) for x in (query, key, value)]


_forward_op = operation(
    "attend(Tensor query, Tensor key, Tensor value, Tensor bounds, Tensor sizes, float scale,"
    " int behind, str kernel) -> Tensor[]",
    _forward,
    _forward_fake,
)
_backward_op = operation(
    "attend_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor sums,"
    " Tensor bounds, Tensor sizes, float scale, int behind, str kernel) -> Tensor[]",
    _backward,
    _backward_fake,
)


class _Attend(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bounds: Tensor,
        sizes: Tensor,
        scale: float,
        behind: int,
        kernel: str,
    ) -> Tensor:
        out, sums = _forward_op(query, key, value, bounds, sizes, scale, behind, kernel)
        ctx.save_for_backward(query, key, value, out, sums, bounds, sizes)
        ctx.scale, ctx.behind, ctx.kernel = scale, behind, kernel
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        found = _backward_op(grad, *ctx.saved_tensors, ctx.scale, ctx.behind, ctx.kernel)
        return (*found, None, None, None, None, None)


def _real(bounds: Tensor, sizes: Tensor) -> tuple[int, Tensor]:
    """The longest row, and the bounds without what fills them up: empty rows cost a kernel time."""
    longest, rows = sizes.tolist()
    return longest, bounds[: rows + 1]


def _no_sums(query: Tensor) -> Tensor:
    return query.new_empty(0, dtype=torch.float32)


def _same_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each key's and value's head once for every query head that it serves."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return query, key, value
    return query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def _fewer_heads(grad: Tensor, heads: int) -> Tensor:
    """What `_same_heads` does to a key, backwards."""
    if grad.shape[1] == heads:
        return grad
    return grad.unflatten(1, (heads, -1)).sum(2)


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, size: int, scale: float, sums: bool
) -> Any:
    return torch.ops.aten._efficient_attention_forward(
        q[None], k[None], v[None], None, bounds, bounds, size, size, 0.0, CAUSAL, sums, scale=scale
    )


def _efficient_back(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    size: int,
    scale: float,
) -> list[Tensor]:
    q, k, v = _same_heads(query, key, value)
    # Its sums have a shape that depends on the batch, so they are not kept but computed again.
    out, sums, seed, offset, *_ = _efficient(q, k, v, bounds, size, scale, True)
    found = torch.ops.aten._efficient_attention_backward(
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
    dq, dk, dv = (x[0] for x in found[:3])
    heads = key.shape[1]
    return [x.contiguous() for x in (dq, _fewer_heads(dk, heads), _fewer_heads(dv, heads))]


def _rows(bounds: Tensor) -> list[tuple[int, int]]:
    return [(start, end) for start, end in itertools.pairwise(bounds.tolist()) if end > start]


def _rows_out(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float, behind: int
) -> Tensor:
    q, k, v = _same_heads(query, key, value)
    rows = []
    for start, end in _rows(bounds):
        a, b, c = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        mask = _seen(end - start, behind, q.device)
        found = scaled_dot_product_attention(a, b, c, attn_mask=mask, scale=scale)
        rows.append(found[0].transpose(0, 1))
    return torch.cat(rows).contiguous()


def _rows_back(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    scale: float,
    behind: int,
) -> list[Tensor]:
    """By the formulas: below autograd, where a custom operation runs, nothing is recorded."""
    q, k, v = _same_heads(query, key, value)
    found = [torch.empty_like(x) for x in (q, k, v)]
    for start, end in _rows(bounds):
        a, b, c, d = (x[start:end].transpose(0, 1).float() for x in (q, k, v, grad))
        scores = (a @ b.mT * scale).masked_fill(~_seen(end - start, behind, q.device), -torch.inf)
        share = scores.softmax(-1)
        felt = d @ c.mT
        pull = share * (felt - (felt * share).sum(-1, keepdim=True)) * scale
        for into, part in zip(found, (pull @ b, pull.mT @ a, share.mT @ d), strict=True):
            into[start:end] = part.transpose(0, 1).to(into.dtype)
    heads = key.shape[1]
    dq, dk, dv = found
    return [dq, *(_fewer_heads(x, heads).contiguous() for x in (dk, dv))]


def _seen(length: int, behind: int, device: torch.device) -> Tensor:
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask if behind < 0 else mask.triu(-behind)
