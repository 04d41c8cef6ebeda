"""How fast this machine computes: measured on a CPU, looked up for a GPU. Imports no torch.

A GPU's rates are its makers' (data sheets, dense, 16 bits, without sparsity) times the share that
training reached on the one that was measured; of an unknown GPU nothing is foretold.
"""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tasks.processes import device

CALIBRATION_SECONDS = 0.15  # each of two
MATRIX = (1024, 1024)  # tokens and width of the product that is timed
STREAM = 1 << 22  # float32 numbers, more than a cache holds
# Of the data sheet: 730 of 989 TFLOP/s in a training step on an H200 (docs/benchmarks.md).
PRODUCTS_SHARE = 0.74
# NVIDIA's data sheets: TFLOP/s of dense 16-bit products added up in 32 bits, and GB/s. The first name
# that is in the driver's own wins.
GPUS = (
    ("B200", 2250, 8000),
    ("H200", 989, 4800),
    ("H100 NVL", 835, 3900),
    ("H100 PCIe", 756, 2000),
    ("H100", 989, 3350),
    ("A100", 312, 1555),
    ("L40S", 362, 864),
    ("L4", 121, 300),
    ("A10G", 70, 600),
    ("A10", 125, 600),
    ("V100", 125, 900),
    ("T4", 65, 320),
    ("RTX 4090", 165, 1008),
    ("RTX 3090", 71, 936),
)


@dataclass(frozen=True)
class Speed:
    """What a device does in a second."""

    device: str  # cpu or cuda
    name: str  # for people
    products: float  # floating point operations of large matrix products
    stream: float  # bytes read or written in passes over activations


class Card(NamedTuple):
    """A GPU as the driver shows it."""

    name: str
    free_bytes: int


@functools.cache
def card() -> Card:
    """This machine's first GPU. Raises CalledProcessError or OSError when the driver does not answer."""
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
    )
    name, _, free = asked.stdout.splitlines()[0].rpartition(",")
    return Card(name.strip(), int(free) * 2**20)


def here() -> Speed | None:
    """The device that will compute, as busy as it is now; None for a GPU whose rates are not known.

    A CPU is measured, for a third of a second.
    """
    if device.compute() == "cuda":
        return of_card(card().name)
    return Speed("cpu", "cpu", _products(), _stream())


def of_card(name: str) -> Speed | None:
    """A GPU's speed by the name that its driver gives it; None where it is not known."""
    words = name.replace("-", " ").split()
    for known, tera, giga in GPUS:
        if all(word in words for word in known.split()):
            return Speed("cuda", name, tera * 1e12 * PRODUCTS_SHARE, giga * 1e9)
    return None


def _products() -> float:
    import numpy as np

    tokens, width = MATRIX
    a, b = np.ones((tokens, width), np.float32), np.ones((width, width), np.float32)
    out = np.empty((tokens, width), np.float32)
    return 2 * tokens * width * width / _typical(lambda: np.matmul(a, b, out=out))


def _stream() -> float:
    import numpy as np

    a, out = np.ones(STREAM, np.float32), np.ones(STREAM, np.float32)
    return 3 * 4 * STREAM / _typical(lambda: np.multiply(a, out, out=out))


def _typical(work: Callable[[], object]) -> float:
    """Seconds that it takes where little else runs: a quarter of the tries were faster."""
    work()  # the first also wakes threads and touches memory
    taken: list[float] = []
    while sum(taken) < CALIBRATION_SECONDS:
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 4]
