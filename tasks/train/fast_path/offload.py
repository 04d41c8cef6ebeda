"""Offload tensors that the backward pass needs to the host's memory, without waiting for the copies.

Considered: torch's `save_on_cpu`, which copies on the computing stream and waits for each copy, and
TRL's OffloadActivations (torchtune's), which moves every activation of a step; here only the inputs of
the layers that the memory plan recomputes are moved. Figures: `least` in docs/benchmarks.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class OffloadToHost(torch.autograd.graph.saved_tensors_hooks):  # type: ignore[misc]
    """A context in which tensors saved for the backward pass are kept in pinned host memory.

    Copies to the host run on a stream of their own, beside the computation. On a CPU nothing moves.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Any:
        if not tensor.is_cuda or self.stream is None:
            return tensor
        on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            on_host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self.stream)
        return on_host, self.stream.record_event(), tensor.device

    @staticmethod
    def _unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        on_host, copy_event, device = packed
        torch.cuda.current_stream().wait_event(copy_event)
        tensor: Tensor = on_host.to(device, non_blocking=True)
        return tensor
