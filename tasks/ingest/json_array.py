"""One JSON array of objects, read element by element, so that a large file is never wholly in memory.

Considered: ijson 3.6. Its C backend reads a lone surrogate as "?", stops the whole file at a byte that is
not UTF-8 or at NaN, has no text of a broken row, and needs memory in the square of the nesting depth (50 kB
of "[" took over 3 GB); its Python backend does not cut off such nesting and takes 4 times as long as this.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tasks.contracts.errors import DataError
from tasks.ingest.row_types import RAW_CHARACTERS, Raw

CHUNK = 1 << 20
# One element larger than this is a broken file, not a row.
LONGEST_ELEMENT = 1 << 26


class _Buffer:
    """The part of the file not yet parsed; `fill` reads more of it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.text, self.at, self.ended = stream, "", 0, False

    def fill(self) -> None:
        # At least as much as is unparsed: so a long element is parsed again only a few times.
        more = self.stream.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not more
        self.text, self.at = self.text[self.at :] + more, 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.fill()


def read_array(path: Path, name: str) -> Iterator[Raw]:
    """The array's elements, numbered from 1. Of a file that ends too early only the last row is lost.

    Raises DataError where the file is broken before its end: the rows after that cannot be separated.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
        buffer = _Buffer(stream)
        buffer.peek()
        buffer.at += 1  # the opening bracket, which the caller has seen
        yield from _elements(buffer, name)


def _elements(buffer: _Buffer, name: str) -> Iterator[Raw]:
    line = 0
    while (mark := buffer.peek()) != "]":
        line += 1
        if not mark:
            yield Raw(line, None, "is missing: the array is not closed; write the file again")
            return
        start = buffer.text[buffer.at : buffer.at + RAW_CHARACTERS]
        complete, element = _element(buffer, name, line)
        if not complete:
            yield Raw(
                line, None, "is half-written: the file ends within it; write the file again", start
            )
            return
        if isinstance(element, dict):
            yield Raw(line, element)
        else:
            kind = type(element).__name__
            yield Raw(line, None, f"is not an object with columns but {kind}; correct it", start)
        _past_comma(buffer, name, line)
    buffer.at += 1
    if buffer.peek():
        raise DataError(f"{name} has text after its array of {line} rows; remove it, or use JSONL")


def _past_comma(buffer: _Buffer, name: str, line: int) -> None:
    mark = buffer.peek()
    if mark == ",":
        buffer.at += 1
    elif mark not in ("]", ""):
        raise DataError(f"{name}: no comma after row {line}; correct the file, or use JSONL")


def _element(buffer: _Buffer, name: str, line: int) -> tuple[bool, Any]:
    decoder = json.JSONDecoder()
    while True:
        try:
            value, end = decoder.raw_decode(buffer.text, buffer.at)
        except (ValueError, RecursionError) as error:
            if not buffer.ended and len(buffer.text) - buffer.at < LONGEST_ELEMENT:
                buffer.fill()
                continue
            if not _ends_too_early(error, buffer):
                raise DataError(
                    f"{name} is not valid JSON at row {line} ({error}); correct the file, or use JSONL"
                ) from error
            return False, None
        if end == len(buffer.text) and not buffer.ended:  # a number may go on in the next chunk
            buffer.fill()
            continue
        buffer.at = end
        return True, value


def _ends_too_early(error: Exception, buffer: _Buffer) -> bool:
    if not isinstance(error, json.JSONDecodeError) or not buffer.ended:
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer.text.rstrip())
