"""Headers of safetensors files: name, type, shape and place of each tensor. No weights are read.

Not by the safetensors library: its `safe_open` gives no offsets, which the merge needs to copy bytes, and
maps each file into memory. The format: eight bytes of length, a JSON header, the tensors' bytes
(https://github.com/huggingface/safetensors#format). The served code has a count of its own
(tasks.serving), since it travels without this project. Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tasks.contracts.errors import BaseModelError

Shapes = dict[str, tuple[int, ...]]
LENGTH_BYTES = 8
METADATA = "__metadata__"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    name: str
    dtype: str  # the format's word: BF16
    shape: tuple[int, ...]
    begin: int  # in the file, bytes
    size_bytes: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file."""

    tensors: tuple[StoredTensor, ...]
    metadata: dict[str, str]
    file_bytes: int  # of the whole file, weights included


def read_header(file: Path) -> Header:
    """The header of a safetensors file. Raises BaseModelError when it cannot be read."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            if length > file.stat().st_size:
                raise ValueError("it ends within its header")
            header = json.loads(stream.read(length))
        data = LENGTH_BYTES + length
        tensors = tuple(
            _stored(name, entry, data) for name, entry in header.items() if name != METADATA
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{file} cannot be read ({error}); fetch it again") from error
    end = max((tensor.begin + tensor.size_bytes for tensor in tensors), default=data)
    return Header(tensors, header.get(METADATA) or {}, end)


def read_whole(file: Path) -> Header:
    """The header of a file that holds all its weights. Raises BaseModelError when it does not."""
    header, size_bytes = read_header(file), file.stat().st_size
    if header.file_bytes != size_bytes:
        raise BaseModelError(
            f"{file} cannot be read (it has {size_bytes} bytes, its header names {header.file_bytes}); "
            "fetch it again"
        )
    return header


def _stored(name: str, entry: dict[str, Any], data: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    return StoredTensor(name, str(entry["dtype"]), tuple(entry["shape"]), data + begin, end - begin)


def tensor_shapes(model: Path) -> Shapes:
    """Name and shape of every tensor of a model folder. Raises BaseModelError as `read_header`."""
    files = sorted(model.glob("*.safetensors"))
    return {tensor.name: tensor.shape for file in files for tensor in read_header(file).tensors}


def parameter_count(model: Path) -> int:
    """How many numbers a model folder's weights are. Raises BaseModelError as `read_header`."""
    return sum(map(prod, tensor_shapes(model).values()))
