"""The processes that train one model together: one a device.

They hand each other gradients, counts and decisions, and every function here is to be called by all
of them at the same place. A process on its own is a team of one, for which nothing happens. Small
things travel between CPUs (gloo): no GPU waits for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

# The others wait while the first one digests the base, compiles, or stores a checkpoint; a dead one
# is noticed by torchrun, at once.
PATIENCE = timedelta(minutes=30)


def join() -> None:
    """Meet the others, where torchrun's variables say."""
    if torch.cuda.is_available():
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
        # NCCL takes its memory now, before it is asked what is free.
        dist.all_reduce(torch.zeros(1, device="cuda"))
        return
    # accelerate would name it cpu:0, to which torch.load cannot load an optimizer's state.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    dist.init_process_group("gloo", timeout=PATIENCE)


def leave() -> None:
    """Part from the others."""
    dist.destroy_process_group()


def size() -> int:
    """How many there are."""
    return int(dist.get_world_size()) if _joined() else 1


def rank() -> int:
    """This one's number; 0 reports, and writes what is kept."""
    return int(dist.get_rank()) if _joined() else 0


def share(value: Any) -> Any:
    """What the first one has."""
    if not _joined():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def first_of(value: Any) -> Any:
    """The value of the first one that has any."""
    if not _joined():
        return value
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return next((one for one in found if one is not None), None)


def any_of(flag: bool) -> bool:
    """Whether it is so for at least one of them."""
    return bool(_agreed([int(flag)], torch.int32, dist.ReduceOp.MAX)[0])


def wait() -> None:
    """Until all have come here."""
    any_of(False)


def least(value: float) -> float:
    """The least that any of them has."""
    return float(_agreed([value], torch.float64, dist.ReduceOp.MIN)[0])


def most(value: float) -> float:
    """The most that any of them has."""
    return float(_agreed([value], torch.float64, dist.ReduceOp.MAX)[0])


def totals(counts: list[int]) -> list[int]:
    """The sum of each count over all of them."""
    return [int(x) for x in _agreed(counts, torch.int64, dist.ReduceOp.SUM)]


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every parameter the sum of all gradients, in one message.

    An adapter's are 160 MB for a model of 7B, which NVLink carries in about a millisecond: to hide
    that behind the backward pass, DistributedDataParallel would need its own forward, and hooks on
    parameters whose gradients come from one operation a group (`linear`).
    """
    if not _joined():
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    _hand_out(flat, grads)


def align(parameters: Iterable[Tensor]) -> None:
    """Give every parameter the first one's values."""
    if not _joined():
        return
    values = [p.data for p in parameters]
    flat = torch.cat([value.reshape(-1) for value in values])
    dist.broadcast(flat, src=0)
    _hand_out(flat, values)


def _hand_out(flat: Tensor, tensors: list[Tensor]) -> None:
    parts = flat.split([tensor.numel() for tensor in tensors])
    shaped = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(tensors, shaped)


def _joined() -> bool:
    return bool(dist.is_available() and dist.is_initialized())


def _agreed(values: list[Any], dtype: torch.dtype, operation: Any) -> list[Any]:
    if not _joined():
        return values
    found = torch.tensor(values, dtype=dtype)
    dist.all_reduce(found, operation)
    return list(found.tolist())
