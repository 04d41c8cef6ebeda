"""NF4 on a CPU, a part of a matrix at a time: bitsandbytes' own numbers in a tenth of its time.

bitsandbytes 0.50.2 has no kernel of its own for this on a CPU: it searches for each weight's place
among the 15 bounds (45 ns a weight on one core, with a float32 copy of the matrix) where 15
comparisons take 3 ns. Rounding of the scales and dequantizing are bitsandbytes' own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

BLOCK = 64  # weights that share a scale
HIGHEST = 15  # the code of the largest weights
SMALLEST = 1e-38  # bitsandbytes', for blocks of zeros


class Codes:
    """A matrix in NF4: `take` its weights part by part, `settle`, `give` their rounded values."""

    def __init__(self, weights: int) -> None:
        """Room for so many weights, a multiple of BLOCK."""
        from bitsandbytes.functional import get_4bit_type

        code = get_4bit_type("nf4", device="cpu")
        self.bounds = [np.float32(bound) for bound in ((code[:-1] + code[1:]) / 2).tolist()]
        self.packed = torch.empty(weights // 2, dtype=torch.uint8)
        self.scales = torch.empty(weights // BLOCK)

    def take(self, begin: int, weights: Any) -> None:
        """Quantize `weights`, flat, float32, changed in place, as those from number `begin` on."""
        end, blocks = begin + weights.numel(), weights.view(-1, BLOCK)
        scales = self.scales[begin // BLOCK : end // BLOCK]
        torch.maximum(blocks.amax(1), blocks.amin(1).neg_(), out=scales)
        blocks.mul_((1.0 / scales.clamp(min=SMALLEST))[:, None]).clamp_(-1, 1)
        # numpy: torch writes booleans ten times more slowly.
        values, below = weights.numpy(), np.empty(len(weights), dtype=bool)
        codes = np.full(len(weights), HIGHEST, dtype=np.uint8)
        for bound in self.bounds:
            np.less_equal(values, bound, out=below)
            np.subtract(codes, below.view(np.uint8), out=codes)
        pairs = torch.from_numpy(codes).view(torch.int16)  # the second of two is the high byte
        self.packed[begin // 2 : end // 2].copy_((pairs << 4) | (pairs >> 8))

    def settle(self, offset: Any) -> None:
        """Round the scales too, when all weights were taken: around `offset`, their mean."""
        from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

        rounded, state = quantize_blockwise(self.scales - offset, blocksize=256)
        self.scales = dequantize_blockwise(rounded, state).add_(offset)

    def give(self, begin: int, count: int, dtype: torch.dtype) -> Any:
        """The rounded values [count] of the weights from number `begin` on, in `dtype`."""
        end = begin + count
        return torch.ops.bitsandbytes.dequantize_4bit(
            self.packed[begin // 2 : end // 2],
            self.scales[begin // BLOCK : end // BLOCK],
            BLOCK,
            "nf4",
            [1, count],
            dtype,
        ).view(-1)
