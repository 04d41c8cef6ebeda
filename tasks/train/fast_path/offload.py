"""Keep what waits for the backward pass in the host's memory, without making either side wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class OnHost(torch.autograd.graph.saved_tensors_hooks):  # type: ignore[misc]
    """Within it, tensors saved for the backward pass lie in pinned host memory.

    torch's own `save_on_cpu` copies on the computing stream and waits for each copy; here copies
    out run beside the computation. On a CPU nothing is moved.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        super().__init__(self._out, self._back)

    def _out(self, tensor: Tensor) -> Any:
        if not tensor.is_cuda or self.stream is None:
            return tensor
        kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            kept.copy_(tensor, non_blocking=True)
        tensor.record_stream(self.stream)
        return kept, self.stream.record_event(), tensor.device

    @staticmethod
    def _back(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        tensor, copied, device = kept
        torch.cuda.current_stream().wait_event(copied)
        found: Tensor = tensor.to(device, non_blocking=True)
        return found
