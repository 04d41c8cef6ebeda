"""Whether a base's weights are all finite: one NaN makes every loss NaN, and the run goes on.

The safetensors library and torch would map or load whole tensors; this reads 4 MiB at a time with NumPy,
as fast as memory, and imports no torch. A number is NaN or infinite if all bits of its exponent are set.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tasks.contracts.errors import BaseModelError
from tasks.models.safetensors_headers import StoredTensor, read_whole

READ_BYTES = 4 * 2**20
SHOWN = 3
# By type: bytes of a number, its bits without the sign, and those of its exponent.
BITS = {
    "BF16": (2, 0x7FFF, 0x7F80),
    "F16": (2, 0x7FFF, 0x7C00),
    "F32": (4, 0x7FFFFFFF, 0x7F800000),
    "F64": (8, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}


def problems(files: Iterable[Path]) -> list[str]:
    """The files with NaN or infinite weights, or that cannot be read, a line each. Reads them all."""
    paths = list(files)
    with ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1) or 1) as pool:
        return [problem for found in pool.map(_problems, paths) for problem in found]


def _problems(file: Path) -> list[str]:
    try:
        with file.open("rb", buffering=0) as stream:
            tensors = [tensor for tensor in read_whole(file).tensors if tensor.dtype in BITS]
            largest = {t.name: _largest(stream.fileno(), t) for t in tensors}
            broken = [t.name for t in tensors if largest[t.name] >= BITS[t.dtype][2]]
            matrices = [t for t in tensors if len(t.shape) > 1]
    except BaseModelError as error:
        return [str(error)]
    except OSError as error:
        return [f"{file} cannot be read ({error.strerror}); fetch it again"]
    if matrices and not any(largest[t.name] for t in matrices):
        return [
            f"{file}: all weights are 0, as in a file that was laid out and never filled; fetch it again"
        ]
    if not broken:
        return []
    names = ", ".join(broken[:SHOWN])
    more = f" and {len(broken) - SHOWN} more tensors" if len(broken) > SHOWN else ""
    return [
        f"{file}: weights that are NaN or infinite in {names}{more}; fetch the file again, or choose "
        "another base: nothing that is trained on them would be a number"
    ]


def _largest(descriptor: int, tensor: StoredTensor) -> int:
    """The largest bits without sign; those of NaN and infinity end the reading."""
    import numpy as np

    width, without_sign, exponent = BITS[tensor.dtype]
    buffer: Any = np.empty(READ_BYTES // width, dtype=f"<u{width}")
    view = memoryview(buffer).cast("B")
    done = largest = 0
    while done < tensor.size_bytes:
        wanted = min(READ_BYTES, tensor.size_bytes - done)
        count = os.preadv(descriptor, [view[:wanted]], tensor.begin + done)
        count -= count % width
        if not count:
            raise OSError(0, "it ends before its weights do")
        numbers = buffer[: count // width]
        numbers &= without_sign
        largest = max(largest, int(numbers.max()))
        if largest >= exponent:
            break
        done += count
    return largest
