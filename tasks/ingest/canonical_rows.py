"""Canonical rows on disk: a row a line of JSON, and what makes two rows the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from tasks.contracts.documents import Document
from tasks.contracts.records import Row
from tasks.ingest.row_types import normalized

_ROW = TypeAdapter(Row)


def row_json(row: Row) -> bytes:
    """A canonical row as one line of JSON."""
    return _ROW.dump_json(row) + b"\n"


def read_lines(path: Path) -> Iterator[tuple[bytes, Row]]:
    """The file's lines one at a time, each with its row."""
    with path.open("rb") as lines:
        for line in lines:
            yield line, _ROW.validate_json(line)


def identity(source: str, document: Document, references: Sequence[str]) -> bytes:
    """16 bytes that two rows share when document and references are equal but for white space.

    Of conversations, and of several texts by name, all that they hold counts: roles, weights and names.
    """
    whole = source if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
    key = hashlib.blake2b(digest_size=16)
    for text in (whole, *references):
        key.update(normalized(text).encode() + b"\0")
    return key.digest()
