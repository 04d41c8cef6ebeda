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
    found = ctypes.c_int()
    if (driver := _driver()) is None or driver.cuDeviceGetCount(ctypes.byref(found)):
        return 0
    return found.value


@functools.cache
def memory_bytes() -> int:
    """All memory of the first GPU that this process is shown; 0 without any."""
    at, found = ctypes.c_int(), ctypes.c_size_t()
    if (driver := _driver()) is None or driver.cuDeviceGet(ctypes.byref(at), 0):
        return 0
    return 0 if driver.cuDeviceTotalMem_v2(ctypes.byref(found), at) else found.value


@functools.cache
def _driver() -> ctypes.CDLL | None:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver
