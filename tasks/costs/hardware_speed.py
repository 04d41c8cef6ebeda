"""How fast this machine computes: measured on a CPU, looked up for a GPU. Imports no torch.

A GPU's rates are those of its data sheet (dense, 16 bits, without sparsity), products times the share
that training reached on the one that was measured. The rates of other GPUs are unknown.
"""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tasks.processes import device

MEASURING_SECONDS = 0.15  # each of two rates
MATRIX = (1024, 1024)  # tokens and width of the product that is timed
STREAM_NUMBERS = 1 << 22  # float32, more than a cache holds
# Of the data sheet: 730 of 989 TFLOP/s in a training step on an H200 (docs/benchmarks.md).
PRODUCTS_SHARE = 0.74
# NVIDIA's data sheets: TFLOP/s of dense 16-bit products added up in 32 bits, and GB/s. The first name
# whose words are all in the driver's name is taken.
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


class Gpu(NamedTuple):
    """A GPU as the driver shows it."""

    name: str
    free_bytes: int


@functools.cache
def first_gpu() -> Gpu:
    """This machine's first GPU. Raises CalledProcessError or OSError when the driver does not answer."""
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
    )
    name, _, free = done.stdout.splitlines()[0].rpartition(",")
    return Gpu(name.strip(), int(free) * 2**20)


def this_machine() -> Speed | None:
    """The device that will compute, as busy as it is now; None for a GPU whose rates are not known.

    A CPU is measured, for a third of a second.
    """
    if device.compute() == "cuda":
        return of_gpu(first_gpu().name)
    return Speed("cpu", "cpu", _products(), _stream())


def of_gpu(name: str) -> Speed | None:
    """A GPU's speed by the name that its driver gives it; None where it is not known."""
    words = set(name.replace("-", " ").split())
    for gpu, teraflops, gigabytes in GPUS:
        if set(gpu.split()) <= words:
            return Speed("cuda", name, teraflops * 1e12 * PRODUCTS_SHARE, gigabytes * 1e9)
    return None


def _products() -> float:
    import numpy as np

    tokens, width = MATRIX
    a, b = np.ones((tokens, width), np.float32), np.ones((width, width), np.float32)
    out = np.empty((tokens, width), np.float32)
    return 2 * tokens * width * width / _typical(lambda: np.matmul(a, b, out=out))


def _stream() -> float:
    import numpy as np

    a, out = np.ones(STREAM_NUMBERS, np.float32), np.ones(STREAM_NUMBERS, np.float32)
    return 3 * 4 * STREAM_NUMBERS / _typical(lambda: np.multiply(a, out, out=out))


def _typical(work: Callable[[], object]) -> float:
    """Seconds that `work` takes when little else runs: a quarter of the tries were faster."""
    work()  # the first call also starts threads and touches memory
    seconds: list[float] = []
    while sum(seconds) < MEASURING_SECONDS:
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return sorted(seconds)[len(seconds) // 4]
