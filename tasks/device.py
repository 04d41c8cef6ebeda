"""Which processor will compute, found without importing torch."""

from __future__ import annotations

import ctypes
import functools
import os


def compute() -> str:
    """`cuda` where the NVIDIA driver shows a device, else `cpu`.

    Part of what predictions are known by: the same model writes other summaries in bf16 on a GPU
    than in float32 on a CPU, and those are never compared.
    """
    return "cuda" if count() else "cpu"


@functools.cache
def count() -> int:
    """How many GPUs the NVIDIA driver shows this process; CUDA_VISIBLE_DEVICES is heeded."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    found = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(found)):
        return 0
    return found.value
