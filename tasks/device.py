"""Which processor will compute, found without importing torch."""

from __future__ import annotations

import ctypes
import functools
import os


@functools.cache
def compute() -> str:
    """`cuda` where the NVIDIA driver shows a device, else `cpu`.

    Part of what predictions are known by: the same model writes other summaries in bf16 on a GPU
    than in float32 on a CPU, and those are never compared.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "cpu"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "cpu"
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return "cpu"
    return "cuda" if count.value else "cpu"
