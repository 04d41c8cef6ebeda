"""Collective operations of torch.distributed between the ranks that train one model together.

One rank a device. Every rank must call the same function at the same place. In a single process
each function returns its argument or does nothing. Values other than gradients travel between CPUs
(gloo), so no GPU waits for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

# Long, because the other ranks wait while rank 0 digests the base, compiles, or stores a checkpoint.
# torchrun notices a rank that died at once.
TIMEOUT = timedelta(minutes=30)


def init_process_group() -> None:
    """Join the other ranks; torchrun's environment variables say where they meet."""
    if torch.cuda.is_available():
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=TIMEOUT)
        # NCCL allocates its buffers at the first call: before free memory is measured.
        dist.all_reduce(torch.zeros(1, device="cuda"))
        return
    # accelerate would name it cpu:0, to which torch.load cannot load an optimizer's state.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    dist.init_process_group("gloo", timeout=TIMEOUT)


def destroy_process_group() -> None:
    """Leave the other ranks."""
    dist.destroy_process_group()


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    return int(dist.get_world_size()) if _is_initialized() else 1


def rank() -> int:
    """This process's rank. Rank 0 reports progress and writes files."""
    return int(dist.get_rank()) if _is_initialized() else 0


def broadcast(value: Any) -> Any:
    """The value that rank 0 passed."""
    if not _is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def first_not_none(value: Any) -> Any:
    """The value of the lowest rank that passed one that is not None."""
    if not _is_initialized():
        return value
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return next((each for each in values if each is not None), None)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on at least one rank."""
    return bool(_all_reduce([int(flag)], torch.int32, dist.ReduceOp.MAX)[0])


def barrier() -> None:
    """Wait until all ranks have come here."""
    any_rank(False)


def minimum(value: float) -> float:
    """The smallest value of any rank."""
    return float(_all_reduce([value], torch.float64, dist.ReduceOp.MIN)[0])


def maximum(value: float) -> float:
    """The largest value of any rank."""
    return float(_all_reduce([value], torch.float64, dist.ReduceOp.MAX)[0])


def sums(counts: list[int]) -> list[int]:
    """The sum of each count over all ranks."""
    return [int(x) for x in _all_reduce(counts, torch.int64, dist.ReduceOp.SUM)]


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every parameter the sum of its gradients over all ranks, in one message.

    Not DistributedDataParallel: an adapter's gradients are 160 MB for a model of 7B, which NVLink
    carries in about a millisecond. To hide that behind the backward pass it would need its own
    forward, and hooks on parameters whose gradients come from one operation a group (lora_linear).
    """
    if not _is_initialized():
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    _copy_back(flat, grads)


def broadcast_parameters(parameters: Iterable[Tensor]) -> None:
    """Give every parameter the values of rank 0."""
    if not _is_initialized():
        return
    values = [p.data for p in parameters]
    flat = torch.cat([value.reshape(-1) for value in values])
    dist.broadcast(flat, src=0)
    _copy_back(flat, values)


def _copy_back(flat: Tensor, tensors: list[Tensor]) -> None:
    parts = flat.split([tensor.numel() for tensor in tensors])
    shaped = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(tensors, shaped)


def _is_initialized() -> bool:
    return bool(dist.is_available() and dist.is_initialized())


def _all_reduce(values: list[Any], dtype: torch.dtype, operation: Any) -> list[Any]:
    if not _is_initialized():
        return values
    reduced = torch.tensor(values, dtype=dtype)
    dist.all_reduce(reduced, operation)
    return list(reduced.tolist())
