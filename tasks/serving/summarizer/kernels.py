"""Attention over packed prompts and over a cache of keys and values, without padding.

`torch.ops.aten._flash_attention_forward` and `_efficient_attention_forward` are private to torch: these
signatures were tried with torch 2.11 to 2.13 (pyproject.toml asks for 2.11 or later).
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CAUSAL = 1  # the memory-efficient kernel's mask
BLOCK_TOKENS, WARPS = 64, 2  # of the decode kernel


def repeat_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each head of keys and values once for every query head that reads it: [tokens, heads, width]."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return query, key, value
    return query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float, longest: int
) -> Tensor:
    """Causal attention within each packed row; [tokens, heads, width], `bounds` int32.

    By FlashAttention-2 (Dao 2023, arXiv:2307.08691) or the memory-efficient kernel (Rabe and Staats
    2021, arXiv:2112.05682) on a GPU, row by row on a CPU.
    """
    if not query.is_cuda:
        query, key, value = repeat_heads(query, key, value)
        rows = []
        for first, end in itertools.pairwise(bounds.tolist()):
            q, k, v = (x[first:end].transpose(0, 1)[None] for x in (query, key, value))
            row = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
            rows.append(row[0].transpose(0, 1))
        return torch.cat(rows)
    if query.dtype != torch.float32 and torch.cuda.get_device_capability(query.device) >= (8, 0):
        flash: Tensor = torch.ops.aten._flash_attention_forward(
            query, key, value, bounds, bounds, longest, longest, 0.0, True, False, scale=scale
        )[0]
        return flash
    q, k, v = (x.contiguous()[None] for x in repeat_heads(query, key, value))
    efficient: Tensor = torch.ops.aten._efficient_attention_forward(
        q, k, v, None, bounds, bounds, longest, longest, 0.0, CAUSAL, False, scale=scale
    )[0][0]
    return efficient


def decode_attention_reference(
    query: Tensor, keys: Tensor, values: Tensor, starts: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """Each slot's one query over the keys that it has, slot by slot: what a CPU computes.

    `query` [slots, heads, width]; `keys`, `values` [their heads, tokens, width]; a slot's are
    `lengths` tokens from `starts` on.
    """
    grouped = query.shape[1] != keys.shape[0]
    rows = []
    for slot_query, start, length in zip(query, starts.tolist(), lengths.tolist(), strict=True):
        k, v = (x[None, :, start : start + length] for x in (keys, values))
        row = functional.scaled_dot_product_attention(
            slot_query[None, :, None], k, v, scale=scale, enable_gqa=grouped
        )
        rows.append(row[0, :, 0])
    return torch.stack(rows)


def decode_attention(
    query: Tensor, keys: Tensor, values: Tensor, starts: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """`decode_attention_reference` as one kernel: a program a slot and head reads each key once.

    The softmax is taken as the keys pass by (Milakov and Gimelshein 2018, arXiv:1805.02867). No matrix
    units: with one query there is one multiplication a number read, and reading is what takes time.
    """
    slots, heads, width = query.shape
    query, out = query.contiguous(), torch.empty_like(query, memory_format=torch.contiguous_format)
    _decode_kernel()[(slots, heads)](
        query, keys, values, out, starts, lengths, scale * 1.4426950408889634, keys.stride(0),
        heads, heads // keys.shape[0], width, 1 << (width - 1).bit_length(), BLOCK_TOKENS,
        num_warps=WARPS,
    )  # fmt: skip
    return out


@functools.cache
def _decode_kernel() -> Any:
    """Triton is imported where it is used: a machine without a GPU need not have it."""
    import triton
    import triton.language as tl

    def decode_kernel(  # type: ignore[no-untyped-def]
        query, keys, values, out, starts, lengths, scale, head_stride,
        heads: tl.constexpr, group: tl.constexpr, width: tl.constexpr, padded_width: tl.constexpr,
        block: tl.constexpr,
    ):  # fmt: skip
        slot, head = tl.program_id(0), tl.program_id(1)
        columns = tl.arange(0, padded_width)
        in_width = columns < width
        query_offsets = (slot * heads + head) * width + columns
        q = tl.load(query + query_offsets, mask=in_width, other=0.0).to(tl.float32) * scale
        length = tl.load(lengths + slot).to(tl.int32)
        first = (head // group).to(tl.int64) * head_stride + tl.load(starts + slot) * width
        rows = tl.arange(0, block)
        largest = tl.full([1], float("-inf"), tl.float32)
        total = tl.zeros([1], tl.float32)
        acc = tl.zeros([padded_width], tl.float32)
        for at in range(0, length, block):
            in_length = at + rows < length
            offsets = first + (at + rows)[:, None] * width + columns[None, :]
            mask = in_length[:, None] & in_width[None, :]
            key = tl.load(keys + offsets, mask=mask, other=0.0).to(tl.float32)
            value = tl.load(values + offsets, mask=mask, other=0.0).to(tl.float32)
            score = tl.where(in_length, tl.sum(key * q[None, :], 1), float("-inf"))
            new_largest = tl.maximum(largest, tl.max(score, 0))
            weight = tl.exp2(score - new_largest)
            rescale = tl.exp2(largest - new_largest)
            total = total * rescale + tl.sum(weight, 0)
            acc = acc * rescale + tl.sum(weight[:, None] * value, 0)
            largest = new_largest
        result = acc / total
        tl.store(out + query_offsets, result.to(out.dtype.element_ty), mask=in_width)

    decode_kernel.__globals__["tl"] = tl
    return triton.jit(decode_kernel)
