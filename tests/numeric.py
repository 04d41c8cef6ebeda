"""Compare floating-point results so that any CPU passes and a wrong formula fails.

CPUs and libraries add the same terms in different orders and widths, so the last digits of a
float32 sum differ between machines. The error grows with the terms that were added, not with their
sum: large terms that cancel leave a small result that carries the error of the large terms. A bound
relative to each single result (`rtol`) or fixed by trial on one machine (`atol`) therefore fails on
the next CPU. Here the error is divided by the size of what was computed: the largest value of the
tensor, or what the test passes as `size`.

Where the formula can be written in float64, the reference is in float64: it is then exact for this
purpose, and only one side is rounded.
"""

from __future__ import annotations

from typing import Any

import torch

EPSILON = 2**-23  # float32's distance from 1 to the next number
# One matrix product, or a few in a row, of at most some hundred terms. A term's rounding is EPSILON / 2,
# and signs are mixed: measured up to 4 EPSILON of the largest value, on three numeric paths
# (AVX512-BF16, AVX2, and ATEN_CPU_CAPABILITY=default). Ten times that is allowed.
PRODUCTS = 40 * EPSILON  # 4.8e-6
# A tiny model of two layers, forward or backward: some 30 operations that feed each other, with
# norms and softmaxes in between. Measured up to 25 EPSILON of a tensor's largest value.
MODEL = 250 * EPSILON  # 3.0e-5
# A loss is a mean of positive terms, which cannot cancel: its error is relative to itself.
LOSS = 40 * EPSILON


def relative_error(actual: Any, expected: Any, size: float | None = None) -> float:
    """The largest difference, divided by `size` (default: the largest absolute expected value)."""
    actual, expected = (torch.as_tensor(x).detach().double() for x in (actual, expected))
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert actual.isfinite().all(), "not all values are finite numbers"
    if not actual.numel():
        return 0.0
    scale = float(expected.abs().max()) if size is None else size
    error = float((actual - expected).abs().max())
    return error / scale if scale else (0.0 if error == 0 else float("inf"))


def assert_close(
    actual: Any, expected: Any, within: float, size: float | None = None, name: str = "it"
) -> None:
    """`actual` is `expected` but for rounding: no value is off by more than `within` times `size`."""
    error = relative_error(actual, expected, size)
    assert error <= within, (
        f"{name} is off by {error:.2g} of its size; rounding explains {within:.2g}"
    )


def assert_rounded_once(actual: torch.Tensor, exact: torch.Tensor) -> None:
    """`actual` (16 bits) is `exact` (float64) computed in float32 and rounded once.

    Where float32's own rounding moves a value across the border between two 16-bit numbers, either
    of them is right. Rounding twice, or a formula that is wrong, is not.
    """
    margin = PRODUCTS * float(exact.abs().max())
    low, high = ((exact + shift).to(actual.dtype) for shift in (-margin, margin))
    wrong = int(((actual < low) | (actual > high)).sum())
    assert not wrong, f"{wrong} of {actual.numel()} values are not the formula's, rounded once"
