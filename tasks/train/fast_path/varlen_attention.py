"""Causal attention over packed rows as one operation that a compiler leaves alone.

torch's kernels: FlashAttention-2 (Dao 2023, arXiv:2307.08691) on GPUs from compute capability 8.0, the
memory-efficient one (Rabe and Staats 2021, arXiv:2112.05682) on older ones; on a CPU row by row. The
number of rows and the longest row come in a tensor on the CPU: Python integers would recompile layers.

Considered: torch's varlen_attn, which takes the longest row as an integer (docs/devices.md). Its private
torch.ops.aten._flash_attention_forward and _backward were tried with torch 2.11 only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasks.train.fast_path import fallback_attention
from tasks.train.fast_path.custom_op import operation

NAME = "precis_packed_rows_fixed"
FLASH, EFFICIENT, BY_ROW = "flash", "efficient", "by row"
WIDEST_FLASH_HEAD = 256


def register() -> str:
    """Make `packed_rows_attention` known to transformers; returns its `attn_implementation` name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_rows_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # cu_seq_lens_q replaces the mask
    return NAME


def kernel_for(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Which kernel serves heads of this width; torch.backends.cuda.enable_flash_sdp(False) is respected.

    To be called outside a compiled layer.
    """
    if device.type != "cuda":
        return BY_ROW
    half = dtype in {torch.bfloat16, torch.float16} and width <= WIDEST_FLASH_HEAD
    able = half and torch.cuda.get_device_capability(device) >= (8, 0)
    return FLASH if able and torch.backends.cuda.flash_sdp_enabled() else EFFICIENT


def packed_rows_attention(
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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row of one packed sequence, in transformers' form.

    `query` is [1, heads, tokens, width], `key` and `value` may have fewer heads; `cu_seq_lens_q`
    holds the rows' bounds (int32), then padding; `max_length_q`, on the CPU, two integers: the longest
    row and the number of rows; `rows_kernel` is the answer of `kernel_for`. Returns
    [1, tokens, heads, width].
    """
    if dropout or softcap or s_aux is not None:
        raise ValueError("attention with dropout, a soft cap or sinks is not supported here")
    width = query.shape[-1]
    q, k, v = (x[0].transpose(0, 1).to(value.dtype).contiguous() for x in (query, key, value))
    output: Tensor = _Attend.apply(
        q,
        k,
        v,
        cu_seq_lens_q,
        max_length_q,
        width**-0.5 if scaling is None else float(scaling),
        -1 if sliding_window is None else sliding_window - 1,
        BY_ROW if sliding_window is not None and rows_kernel == EFFICIENT else rows_kernel,
    )
    return output[None], None


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
    """[output [tokens, heads, width], log-sum-exp [heads, tokens], empty where not kept].

    `query` is [tokens, heads, width]; a token sees itself and at most `behind` before it in its row
    (-1: all of them).
    """
    size, bounds = _real(bounds, sizes)
    if kernel == BY_ROW:
        return [
            fallback_attention.rows_out(query, key, value, bounds, scale, behind),
            _no_sums(query),
        ]
    if kernel == EFFICIENT:
        return [
            fallback_attention.efficient_out(query, key, value, bounds, size, scale),
            _no_sums(query),
        ]
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
    sums_shape = (query.shape[1], query.shape[0]) if kernel == FLASH else (0,)
    return [torch.empty_like(query), query.new_empty(sums_shape, dtype=torch.float32)]


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
        return fallback_attention.rows_back(grad, query, key, value, bounds, scale, behind)
    if kernel == EFFICIENT:
        return fallback_attention.efficient_back(grad, query, key, value, bounds, size, scale)
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)  # its random state
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
            no_dropout,
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
        gradients = _backward_op(grad, *ctx.saved_tensors, ctx.scale, ctx.behind, ctx.kernel)
        return (*gradients, None, None, None, None, None)


def _real(bounds: Tensor, sizes: Tensor) -> tuple[int, Tensor]:
    """The longest row, and the bounds without their padding: empty rows take a kernel time."""
    longest, rows = sizes.tolist()
    return longest, bounds[: rows + 1]


def _no_sums(query: Tensor) -> Tensor:
    return query.new_empty(0, dtype=torch.float32)
