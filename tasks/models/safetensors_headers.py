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
from tasks.models import weight_files
from tasks.models.json_files import kind_of

Shapes = dict[str, tuple[int, ...]]
LENGTH_BYTES = 8
METADATA = "__metadata__"
MAX_HEADER_BYTES = 32 * 2**20  # ten times that of any known file; the library reads up to 100 MB
# Bits of a number, by the format's name for its type.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    "C64": 64,
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


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
    """The header of a safetensors file. Raises BaseModelError when it is not one that the library reads.

    The weights may be cut short: `read_whole` sees that.
    """
    try:
        with file.open("rb") as stream:
            beginning = stream.read(LENGTH_BYTES)
            length = int.from_bytes(beginning, "little")
            if len(beginning) < LENGTH_BYTES or length > file.stat().st_size - LENGTH_BYTES:
                what = kind_of(beginning + stream.read(64))
                raise ValueError(what or "it ends within its header")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {length:,} bytes")
            header = json.loads(stream.read(length))
        data = LENGTH_BYTES + length
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        tensors = tuple(
            _stored(name, entry, data) for name, entry in header.items() if name != METADATA
        )
        end = _end(tensors, data)
        metadata = _metadata(header.get(METADATA))
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(f"{file} cannot be read ({_short(error)}); fetch it again") from error
    return Header(tensors, metadata, end)


def _short(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    if isinstance(error, UnicodeDecodeError):
        return "its header is not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"its header is not valid JSON: {error}"
    return str(error)[:300]


def read_whole(file: Path) -> Header:
    """The header of a file that holds all its weights. Raises BaseModelError when it does not."""
    header, size_bytes = read_header(file), file.stat().st_size
    if header.file_bytes != size_bytes:
        raise BaseModelError(
            f"{file} cannot be read (it has {size_bytes} bytes, its header names {header.file_bytes}); "
            "fetch it again"
        )
    return header


def _stored(name: str, entry: Any, data: int) -> StoredTensor:
    """A tensor as its entry in the header has it. Raises ValueError where that is wrong."""
    values = entry if isinstance(entry, dict) else {}
    dtype: Any = values.get("dtype")
    shape: Any = values.get("shape")
    offsets: Any = values.get("data_offsets")
    if dtype not in BITS:
        raise ValueError(f"tensor {name[:100]!r} has no type that is known: {str(dtype)[:50]}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name[:100]!r} has no shape and place of whole numbers")
    begin, end = offsets
    if prod(shape) * BITS[dtype] != (end - begin) * 8:
        raise ValueError(
            f"tensor {name[:100]!r} of shape {shape} in {dtype} does not fill the {end - begin} bytes "
            "that are its own"
        )
    return StoredTensor(name, dtype, tuple(shape), data + begin, end - begin)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**63 for n in values)


def _end(tensors: tuple[StoredTensor, ...], data: int) -> int:
    """Where the last tensor ends. Raises ValueError for tensors that overlap, or leave gaps."""
    end = data
    for tensor in sorted(tensors, key=lambda t: (t.begin, t.size_bytes)):
        if tensor.begin != end:
            how = "overlaps the one before" if tensor.begin < end else "leaves a gap before it"
            raise ValueError(f"tensor {tensor.name[:100]!r} {how}")
        end = tensor.begin + tensor.size_bytes
    return end


def _metadata(values: Any) -> dict[str, str]:
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise ValueError("its metadata are not texts by name")
    return values


def tensor_shapes(model: Path) -> Shapes:
    """Name and shape of every tensor that a model folder is loaded with.

    Raises BaseModelError as `read_header`, as `weight_files`, and for a tensor that two files hold.
    """
    return {tensor.name: tensor.shape for tensor in stored_tensors(model)}


def stored_tensors(model: Path) -> list[StoredTensor]:
    """Every tensor that a model folder is loaded with, file by file. Raises as `tensor_shapes`."""
    files = weight_files.weight_files(model)
    of_file = {file: read_header(file).tensors for file in files}
    first: dict[str, Path] = {}
    for file, tensors in of_file.items():
        for tensor in tensors:
            if tensor.name in first:
                raise BaseModelError(
                    f"{file} and {first[tensor.name].name} both hold {tensor.name}; fetch them again"
                )
            first[tensor.name] = file
    return [tensor for tensors in of_file.values() for tensor in tensors]


def parameter_count(model: Path) -> int:
    """How many numbers a model folder's weights are. Raises BaseModelError as `tensor_shapes`."""
    return sum(map(prod, tensor_shapes(model).values()))
