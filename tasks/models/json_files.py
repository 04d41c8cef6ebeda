"""A base's JSON files, read as what they must be: one object, in UTF-8, of a size that fits memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.contracts.errors import BaseModelError

# The largest known is an index of 13 MB; parsed, JSON can take twenty times its size.
MAX_BYTES = 32 * 2**20


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises BaseModelError that says what the file is instead."""
    try:
        size_bytes = path.stat().st_size
        if not path.is_file():
            raise BaseModelError(f"{path} is no regular file; fetch it again")
        if size_bytes > MAX_BYTES:
            raise BaseModelError(
                f"{path} has {size_bytes:,} bytes, more than any model's (the limit is {MAX_BYTES:,}); "
                "fetch it again"
            )
        values = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise BaseModelError(f"{path} cannot be read ({error.strerror}); fetch it again") from None
    except UnicodeDecodeError as error:
        raise BaseModelError(
            f"{path} is not UTF-8 (byte {error.start}); fetch it again, or save it as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BaseModelError(
            f"{path} is not valid JSON ({_short(error)}{_looks_like(path)}); fetch it again"
        ) from None
    if not isinstance(values, dict):
        raise BaseModelError(
            f"{path} holds a JSON {type(values).__name__} in place of an object; fetch it again"
        )
    return values


def write_object(path: Path, values: dict[str, Any]) -> None:
    """Write an object, laid out so that two of the same values are the same bytes."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _short(error: Exception) -> str:
    return str(error) if len(str(error)) < 200 else f"{str(error)[:200]}..."


def _looks_like(path: Path) -> str:
    """What stands in files that were not fetched, in place of their content."""
    with path.open("rb") as stream:
        return f"; {kind}" if (kind := kind_of(stream.read(64))) else ""


def kind_of(beginning: bytes) -> str:
    """What a file that should hold JSON or weights is, from its first bytes; empty if that is not known."""
    if not beginning.strip(b"\0 \r\n\t"):
        return "it is empty, or holds only zeros"
    if beginning.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: run git lfs pull"
    if beginning.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "it is a web page"
    if beginning.startswith(b"PK"):
        return "it is a zip archive, or PyTorch's format"
    return "it is compressed by gzip" if beginning.startswith(b"\x1f\x8b") else ""
