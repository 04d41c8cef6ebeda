"""Round a matrix to NF4 on a CPU, a part at a time: bitsandbytes' numbers in a tenth of its time.

tasks.merge.layer calls it. On a GPU, and for other kinds, it calls tasks.models.quantization.rounded in its
place. Not by bitsandbytes 0.50.2 alone: it has no kernel for this on a CPU and searches for each weight's
code among the 15 bounds (45 ns a weight on one core, with a float32 copy of the matrix), where 15
comparisons take 3 ns. It does round the scales and dequantize here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

BLOCK = 64  # weights that share a scale
HIGHEST_CODE = 15  # of the largest weights
SMALLEST_SCALE = 1e-38  # bitsandbytes', for blocks of zeros


class Nf4Matrix:
    """A matrix in NF4: `quantize` its parts, then `quantize_scales`, then `dequantize` its parts."""

    def __init__(self, weights: int) -> None:
        """Memory for so many weights, a multiple of BLOCK."""
        from bitsandbytes.functional import get_4bit_type

        code = get_4bit_type("nf4", device="cpu")
        self.bounds = [np.float32(bound) for bound in ((code[:-1] + code[1:]) / 2).tolist()]
        self.packed = torch.empty(weights // 2, dtype=torch.uint8)
        self.scales = torch.empty(weights // BLOCK)

    def quantize(self, begin: int, weights: Any) -> None:
        """Quantize flat float32 `weights`, changed in place, as those from index `begin` on."""
        end, blocks = begin + weights.numel(), weights.view(-1, BLOCK)
        scales = self.scales[begin // BLOCK : end // BLOCK]
        torch.maximum(blocks.amax(1), blocks.amin(1).neg_(), out=scales)
        blocks.mul_((1.0 / scales.clamp(min=SMALLEST_SCALE))[:, None]).clamp_(-1, 1)
        # numpy: torch writes booleans ten times more slowly.
        values, below = weights.numpy(), np.empty(len(weights), dtype=bool)
        codes = np.full(len(weights), HIGHEST_CODE, dtype=np.uint8)
        for bound in self.bounds:
            np.less_equal(values, bound, out=below)
            np.subtract(codes, below.view(np.uint8), out=codes)
        pairs = torch.from_numpy(codes).view(torch.int16)  # the second of two is the high byte
        self.packed[begin // 2 : end // 2].copy_((pairs << 4) | (pairs >> 8))

    def quantize_scales(self, offset: Any) -> None:
        """Round the scales too, once all weights are quantized: around `offset`, their mean."""
        from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

        rounded, state = quantize_blockwise(self.scales - offset, blocksize=256)
        self.scales = dequantize_blockwise(rounded, state).add_(offset)

    def dequantize(self, begin: int, count: int, dtype: torch.dtype) -> Any:
        """The rounded values [count] of the weights from index `begin` on, in `dtype`."""
        end = begin + count
        return torch.ops.bitsandbytes.dequantize_4bit(
            self.packed[begin // 2 : end // 2],
            self.scales[begin // BLOCK : end // BLOCK],
            BLOCK,
            "nf4",
            [1, count],
            dtype,
        ).view(-1)
