"""The types that ingest's modules hand each other, and how texts are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.contracts.documents import Document
from tasks.contracts.formatting import listed

LONGEST_SHOWN = 200  # characters of a name in a message
RAW_CHARACTERS = 500  # enough to recognize a row by, without copying a book into the rejects


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the recipe says of how files are read."""

    max_row_bytes: int = 1 << 24
    encoding: str | None = None  # None: UTF-8, or what the file's byte order mark says


DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file on this machine's disk. `name` is how messages and reports call it."""

    name: str
    path: Path
    size: int
    sha256: str
    verified: tuple[str, ...] = ()  # what a download was checked against
    stamp: tuple[int, int, int] | None = None  # of a file that others may write to
    options: ReadOptions = DEFAULT_OPTIONS


@dataclass(frozen=True, slots=True)
class Raw:
    """A row as read: its columns, or why it could not be read."""

    line: int  # 1-based; in Parquet files and JSON arrays the row's number
    value: dict[str, Any] | None
    problem: str = ""
    text: str = ""  # the file's text there, when it could not be read


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be used, as written to `rejects.jsonl`."""

    file: str
    line: int
    problem: str
    raw: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.problem}"


@dataclass(frozen=True, slots=True)
class Example:
    """A usable row, with its file and line."""

    file: str
    line: int
    id: str
    document: Document
    references: tuple[str, ...]
    missing_references: int = 0  # null or blank ones beside those
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # those that the row has


def normalized(text: str) -> str:
    """The text with every run of white space as one blank: equal documents, however wrapped."""
    return " ".join(text.split())


def source_of(document: str) -> str:
    """16 hex digits that name a document, whatever its white space."""
    return hashlib.sha256(normalized(document).encode()).hexdigest()[:16]


def shown(names: list[str], max_names: int = 30) -> str:
    """Names as a message lists them, at most `max_names`."""
    return listed([_short(name) for name in names], max_names)


def _short(name: str) -> str:
    # White space at the ends and control characters would not be seen; texts in place of names are long.
    name = name if len(name) <= LONGEST_SHOWN else name[: LONGEST_SHOWN - 3] + "..."
    return name if name and name.isprintable() and name == name.strip() else repr(name)
