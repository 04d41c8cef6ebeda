"""GPU or CPU, and how many GPUs: asked of the NVIDIA driver, without importing torch."""

from __future__ import annotations

import ctypes
import functools
import os


def compute() -> str:
    """`cuda` where the NVIDIA driver shows a device, else `cpu`.

    Part of the key of stored predictions: the same model writes other summaries in bf16 on a GPU
    than in float32 on a CPU, and the two are never compared.
    """
    return "cuda" if count() else "cpu"


@functools.cache
def count() -> int:
    """How many GPUs the NVIDIA driver shows this process; it respects CUDA_VISIBLE_DEVICES."""
    number = ctypes.c_int()
    if (driver := _driver()) is None or driver.cuDeviceGetCount(ctypes.byref(number)):
        return 0
    return number.value


@functools.cache
def memory_bytes() -> int:
    """Total memory of the first GPU that this process sees; 0 without a GPU."""
    gpu, total = ctypes.c_int(), ctypes.c_size_t()
    if (driver := _driver()) is None or driver.cuDeviceGet(ctypes.byref(gpu), 0):
        return 0
    return 0 if driver.cuDeviceTotalMem_v2(ctypes.byref(total), gpu) else total.value


@functools.cache
def _driver() -> ctypes.CDLL | None:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver
