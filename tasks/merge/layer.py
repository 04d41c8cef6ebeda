"""One layer's weight with its adapter folded in: on a GPU whole, on a CPU rows that fit its caches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import torch
from safetensors.torch import load_file

from tasks.merge.fold import folded
from tasks.merge.nf4_rounding import BLOCK, Codes
from tasks.merge.plan import MAGNITUDE, PREFIX, Plan
from tasks.models import loading, quantization

CHUNK = 1 << 18  # weights: in float32 with two more of its size, what a core's own cache holds


class Layers:
    """Folds the adapter of a plan into weights, in place; to be used by several threads."""

    def __init__(self, plan: Plan, wide: Executor) -> None:
        """`wide`: where torch computes on all the threads that it would compute on elsewhere."""
        self.plan, self.wide = plan, wide
        self.device, self.dtype = loading.device(), getattr(torch, plan.dtype)
        held = load_file(plan.adapter, self.device)
        self.adapter = {name: tensor.float() for name, tensor in held.items()}

    def changes(self, module: str) -> bool:
        """Whether the merge leaves another weight of this module than the base's."""
        return module in self.plan.adapted or module in self.plan.rounded

    def fold(self, module: str, weight: Any) -> None:
        """Put W with the adapter folded in, in float32, rounded once, in the place of `weight`.

        `weight`: [out, in] on the host, in the type that it is stored in.
        """
        if self.device != "cpu":
            weight.copy_(self._whole(module, weight.to(self.device)).to(weight.dtype))
        elif self._by_rows(module, weight):
            self._fold_by_rows(module, weight)
        else:
            weight.copy_(self.wide.submit(self._whole, module, weight).result())

    def _whole(self, module: str, weight: Any) -> Any:
        if module in self.plan.rounded:
            weight = quantization.rounded(weight, self.plan.quantization, self.dtype)
        if module not in self.plan.adapted:
            return weight
        a, b, *magnitude = (self.adapter[f"{PREFIX}{module}.{name}"] for name in self.plan.tensors)
        norm_dtype = self.dtype if module in self.plan.four_bits else torch.float32  # see Plan
        rows = magnitude[0] if magnitude else None
        return folded(weight, a, b, self.plan.scale, rows, norm_dtype)

    def _by_rows(self, module: str, weight: Any) -> bool:
        """Whether rows give just what the whole matrix gives: blocks and products do, norms may not."""
        if module not in self.plan.rounded:
            return MAGNITUDE not in self.plan.tensors
        return (
            self.plan.quantization == "nf4"
            and MAGNITUDE not in self.plan.tensors
            and weight.numel() % BLOCK == 0
        )

    def _fold_by_rows(self, module: str, weight: Any) -> None:
        columns, codes = weight.shape[1], None
        if module in self.plan.rounded:
            codes = Codes(weight.numel())
            for rows in _parts(*weight.shape):
                part = weight[rows].reshape(-1)
                codes.take(rows.start * columns, part.to(self.dtype, copy=True).float())
            # A sum's last bit depends on the number of threads: the mean that training quantized with.
            codes.settle(self.wide.submit(codes.scales.mean).result())
        a, b = None, None
        if module in self.plan.adapted:
            a, b = (self.adapter[f"{PREFIX}{module}.{name}"] for name in self.plan.tensors)
        for rows in _parts(*weight.shape):
            part = weight[rows]
            if codes is not None:
                part = codes.give(rows.start * columns, part.numel(), self.dtype).view(part.shape)
            if a is not None and b is not None:
                part = folded(part, a, b[rows], self.plan.scale)
            weight[rows] = part


def _parts(rows: int, columns: int) -> Iterator[slice]:
    """Rows in turn, about CHUNK weights each; each part begins at a whole number of blocks."""
    step = max(BLOCK, CHUNK // columns // BLOCK * BLOCK)
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))
