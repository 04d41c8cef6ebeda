"""Dequantize doubly quantized NF4 weights to 16 bits: bitsandbytes' values, in one kernel for three.

bitsandbytes dequantizes the scales, adds their offset and dequantizes the weights one after the other;
three launches through Python take a CPU 0.15 ms a weight, and a step has hundreds. Its own kernels stay
the reference, and are used where this one does not give the same bits; docs/devices.md.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK, SCALE_BLOCK = 64, 256  # weights of one scale, scales of one scale
BYTES = 2048  # of packed weights in one Triton program


def wide(parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight [out, in] in `dtype` from packed weights, scales, their scales, code and offset."""
    if _chosen.own and parts[0].is_cuda:
        return by_kernel(parts, shape, dtype)
    return by_bitsandbytes(parts, shape, dtype)


def by_bitsandbytes(parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """`wide` by bitsandbytes' own operations: the reference."""
    packed, absmax, scales, code, offset = parts
    ops = torch.ops.bitsandbytes
    full = ops.dequantize_blockwise.default(absmax, scales, code, SCALE_BLOCK, torch.float32)
    full += offset
    weight: Tensor = ops.dequantize_4bit.default(packed, full, BLOCK, "nf4", list(shape), dtype)
    return weight


def by_kernel(parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """`wide` by one Triton kernel."""
    packed, absmax, scales, code, offset = parts
    out = torch.empty(shape, dtype=dtype, device=packed.device)
    count = packed.numel()
    _kernel()[(-(-count // BYTES),)](
        packed, absmax, scales, code, offset, _table(packed.device), out, count, BYTES,
        enable_fp_fusion=False,  # a product and a sum, each rounded, as in separate kernels
    )  # fmt: skip
    return out


def try_kernel(parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> str | None:
    """Use the kernel from now on if it gives bitsandbytes' very values on this GPU; else the reason."""
    _chosen.own = False
    if not parts[0].is_cuda or torch.cuda.get_device_capability(parts[0].device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    try:
        same = torch.equal(by_kernel(parts, shape, dtype), by_bitsandbytes(parts, shape, dtype))
    except Exception as error:  # of any type: a missing compiler, library or driver; logged
        logging.getLogger(__name__).warning("NF4 kernel failed", exc_info=error)
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    if not same:
        return "it gives other values than bitsandbytes"
    _chosen.own = True
    return None


class _Chosen:
    own = False


_chosen = _Chosen()


@functools.cache
def _table(device: torch.device) -> Tensor:
    from bitsandbytes.functional import get_4bit_type

    table: Tensor = get_4bit_type("nf4", device=device)
    return table


@functools.cache
def _kernel() -> Any:
    """Triton is imported where it is used: a machine without a GPU may not have it."""
    import triton
    import triton.language as tl

    def dequantize(  # type: ignore[no-untyped-def]
        packed, absmax, scales, code, offset, table, out, count, size: tl.constexpr
    ):
        at = tl.program_id(0) * size + tl.arange(0, size)
        there = at < count
        pair = tl.load(packed + at, mask=there, other=0).to(tl.int32)
        block = at // 32  # 64 weights are 32 bytes
        level = tl.load(absmax + block, mask=there, other=0).to(tl.int32)
        scale = tl.load(code + level) * tl.load(scales + block // 256, mask=there, other=0.0)
        scale = scale + tl.load(offset)
        first = tl.load(table + (pair >> 4)) * scale
        second = tl.load(table + (pair & 15)) * scale
        both = tl.interleave(first, second).to(out.dtype.element_ty)
        place = tl.program_id(0) * size * 2 + tl.arange(0, size * 2)
        tl.store(out + place, both, mask=place < count * 2)

    dequantize.__globals__["tl"] = tl
    return triton.jit(dequantize)
