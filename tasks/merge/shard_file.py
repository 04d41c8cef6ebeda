"""A safetensors file tensor by tensor: where each lies, and the header of a file to be written.

safetensors' own `save_file` wants all tensors of a file in memory at once, its `safe_open` maps the
file into it; a merge needs a matrix at a time. The format: eight bytes of length, a JSON header,
the tensors' bytes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts.errors import MergeError

# As save_file (0.8.0) orders a file: wide types first, then by name. The same bytes come out.
ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "F4", "BOOL"),
)
LENGTH_BYTES, ALIGNMENT = 8, 8


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file."""

    name: str
    dtype: str  # the format's word: BF16
    shape: tuple[int, ...]
    begin: int  # in the file, bytes
    size_bytes: int


def tensors_of(file: Path) -> list[Stored]:
    """The tensors of a safetensors file, in the order in which `header` writes them.

    Raises MergeError for a type that no other file of ours was ever written with.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        said: dict[str, Any] = json.loads(stream.read(length))
    data, found = LENGTH_BYTES + length, []
    for name, tensor in said.items():
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            shape = tuple(tensor["shape"])
            found.append(Stored(name, tensor["dtype"], shape, data + begin, end - begin))
    if odd := sorted(f"{t.name} as {t.dtype}" for t in found if t.dtype not in ORDER):
        raise MergeError(f"{file} stores {', '.join(odd)}; store them in one of {', '.join(ORDER)}")
    return sorted(found, key=lambda tensor: (ORDER.index(tensor.dtype), tensor.name))


def header(tensors: Iterable[Stored]) -> bytes:
    """What stands before the bytes of `tensors`, in this order: as `save_file` writes it."""
    # Not the base's metadata: safetensors writes several entries in a random order.
    said: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size_bytes
        said[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def read_into(descriptor: int, room: memoryview, begin: int) -> None:
    """Fill `room` from a file, from byte `begin` on. Raises MergeError where the file ends before."""
    done = 0
    while done < len(room):
        read = os.preadv(descriptor, [room[done:]], begin + done)
        if not read:
            raise MergeError("a weight file of the base was cut short while it was being read")
        done += read
