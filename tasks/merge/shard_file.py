"""A merged safetensors file: its order of tensors, its header, and reading a part of the base's.

safetensors' own `save_file` wants all tensors of a file in memory at once, its `safe_open` maps the
file into it; a merge needs a matrix at a time. The format: eight bytes of length, a JSON header,
the tensors' bytes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks.contracts.errors import MergeError
from tasks.models.safetensors_headers import LENGTH_BYTES, METADATA, StoredTensor, read_header

# As save_file (0.8.0) orders a file: wide types first, then by name. The same bytes come out.
ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "F4", "BOOL"),
)
ALIGNMENT = 8  # bytes: the header is filled up with spaces


def tensors_of(file: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file, in the order in which `header` writes them.

    Raises MergeError for a type that the known order has no place for.
    """
    tensors = read_header(file).tensors
    if odd := sorted(f"{t.name} as {t.dtype}" for t in tensors if t.dtype not in ORDER):
        raise MergeError(f"{file} stores {', '.join(odd)}; store them in one of {', '.join(ORDER)}")
    return in_order(tensors)


def in_order(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """Tensors in the order of a file that is written."""
    return sorted(tensors, key=lambda tensor: (ORDER.index(tensor.dtype), tensor.name))


def header(tensors: Iterable[StoredTensor]) -> bytes:
    """The bytes before those of `tensors`, in this order: as `save_file` writes them."""
    # Not the base's metadata: safetensors writes several entries in random order.
    entries: dict[str, Any] = {METADATA: {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def read_into(descriptor: int, buffer: memoryview, begin: int) -> None:
    """Fill `buffer` from a file, from byte `begin` on. Raises MergeError where the file ends before."""
    done = 0
    while done < len(buffer):
        read = os.preadv(descriptor, [buffer[done:]], begin + done)
        if not read:
            raise MergeError("a weight file of the base was cut short while it was being read")
        done += read
