"""Fold the adapter into one layer's weight: the whole matrix on a GPU, blocks of rows on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import torch
from safetensors.torch import load_file

from tasks.merge.fold import merged_weight
from tasks.merge.nf4_rounding import BLOCK, Nf4Matrix
from tasks.merge.plan import MAGNITUDE, PREFIX, MergePlan
from tasks.models import loading, quantization
from tasks.serving.summarizer.adapter import exact_sum

# With two more float32 matrices of that size, what a core's cache holds.
ROW_BLOCK_WEIGHTS = 1 << 18


class LayerMerger:
    """Folds the adapter of a plan into weights, in place; several threads may use it."""

    def __init__(self, plan: MergePlan, all_threads: Executor) -> None:
        """`all_threads`: an executor in which torch computes on as many threads as it would elsewhere."""
        self.plan, self.all_threads = plan, all_threads
        self.device, self.dtype = loading.device(), getattr(torch, plan.dtype)
        tensors = load_file(plan.adapter, self.device)
        self.adapter = {name: tensor.float() for name, tensor in tensors.items()}

    def changes(self, module: str) -> bool:
        """Whether the merge leaves another weight of this module than the base's."""
        return module in self.plan.adapted or module in self.plan.quantized

    def fold(self, module: str, weight: Any) -> None:
        """Replace `weight` by the merged one, computed in float32 and rounded once.

        `weight`: [out, in] in the host's memory, in the type that it is stored in.
        """
        if self.device != "cpu":
            weight.copy_(self._whole(module, weight.to(self.device)).to(weight.dtype))
        elif self._may_split_rows(module, weight):
            self._fold_by_rows(module, weight)
        else:
            weight.copy_(self.all_threads.submit(self._whole, module, weight).result())

    def _whole(self, module: str, weight: Any) -> Any:
        if module in self.plan.quantized:
            weight = quantization.rounded(weight, self.plan.quantization, self.dtype)
        if module not in self.plan.adapted:
            return weight
        a, b, *magnitude = (
            self.adapter[f"{PREFIX}{module}.{name}"] for name in self.plan.adapter_tensors
        )
        norm_dtype = self.dtype if module in self.plan.four_bits else torch.float32  # see MergePlan
        if self.plan.exact:
            return exact_sum(weight, a, b, self.plan.scale)
        rows = magnitude[0] if magnitude else None
        return merged_weight(weight, a, b, self.plan.scale, rows, norm_dtype)

    def _may_split_rows(self, module: str, weight: Any) -> bool:
        """Whether blocks of rows give exactly what the whole matrix gives: quantization blocks and
        products do, norms may not."""
        if module not in self.plan.quantized:
            return MAGNITUDE not in self.plan.adapter_tensors
        return (
            self.plan.quantization == "nf4"
            and MAGNITUDE not in self.plan.adapter_tensors
            and weight.numel() % BLOCK == 0
        )

    def _fold_by_rows(self, module: str, weight: Any) -> None:
        columns, quantized = weight.shape[1], None
        if module in self.plan.quantized:
            quantized = Nf4Matrix(weight.numel())
            for rows in _row_blocks(*weight.shape):
                part = weight[rows].reshape(-1)
                quantized.quantize(rows.start * columns, part.to(self.dtype, copy=True).float())
            # A sum's last bit depends on the number of threads, and training took the mean on all of them.
            offset = self.all_threads.submit(quantized.scales.mean).result()
            quantized.quantize_scales(offset)
        a, b, add = None, None, exact_sum if self.plan.exact else merged_weight
        if module in self.plan.adapted:
            a, b = (self.adapter[f"{PREFIX}{module}.{name}"] for name in self.plan.adapter_tensors)
        for rows in _row_blocks(*weight.shape):
            part = weight[rows]
            if quantized is not None:
                begin, shape = rows.start * columns, part.shape
                part = quantized.dequantize(begin, part.numel(), self.dtype).view(shape)
            if a is not None and b is not None:
                part = add(part, a, b[rows], self.plan.scale)
            weight[rows] = part


def _row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Rows in turn, about ROW_BLOCK_WEIGHTS weights each, whole quantization blocks."""
    step = max(BLOCK, ROW_BLOCK_WEIGHTS // columns // BLOCK * BLOCK)
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))
