"""Bytes that a base's weights take once loaded, by quantization. Imports no torch."""

from __future__ import annotations

from math import prod

PACKED_BYTES = 0.5  # a weight's own 4 bits
# ... with its share of a scale (a byte for 64 weights) and of that scale's own (a float for 256 scales).
NF4_BYTES = PACKED_BYTES + 1 / 64 + 4 / (64 * 256)


def element_bytes(device: str) -> int:
    """Bytes of a number: training and evaluation compute in float32 on a CPU, in 16 bits on a GPU."""
    return 4 if device == "cpu" else 2


def loaded_bytes(shape: tuple[int, ...], quantization: str, device: str) -> float:
    """What a linear layer's weights [out_features, in_features] take, with their scales."""
    rows, columns = shape
    # On a CPU rows that are no whole number of blocks are dequantized: tasks.models.quantization.
    if quantization == "none" or (quantization != "int8" and device == "cpu" and columns % 64):
        return prod(shape) * element_bytes(device)
    return prod(shape) + 4 * rows if quantization == "int8" else prod(shape) * NF4_BYTES
