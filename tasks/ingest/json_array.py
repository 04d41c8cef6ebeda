"""One JSON array of objects, read element by element, so that a large file is never whole in memory."""

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
    """The part of the file not yet parsed; `fill` reads on."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.text, self.at, self.ended = stream, "", 0, False

    def fill(self) -> None:
        # At least as much as is there already: a long element is not parsed again too often.
        more = self.stream.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not more
        self.text, self.at = self.text[self.at :] + more, 0

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.fill()


def read_array(path: Path, name: str) -> Iterator[Raw]:
    """The array's elements, numbered from 1. A file that breaks off loses its last row only.

    Raises DataError where the file is broken before its end: what follows cannot be told apart.
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
        found, element = _element(buffer, name, line)
        if not found:
            yield Raw(line, None, "is half-written: the file breaks off; write it again", start)
            return
        if isinstance(element, dict):
            yield Raw(line, element)
        else:
            yield Raw(line, None, f"is no object with columns but {type(element).__name__}", start)
        _past_comma(buffer, name, line)
    buffer.at += 1
    if buffer.peek():
        raise DataError(f"{name} goes on after its array of {line} rows; mend it, or use JSONL")


def _past_comma(buffer: _Buffer, name: str, line: int) -> None:
    mark = buffer.peek()
    if mark == ",":
        buffer.at += 1
    elif mark not in ("]", ""):
        raise DataError(f"{name}: no comma after row {line}; mend the file, or use JSONL")


def _element(buffer: _Buffer, name: str, line: int) -> tuple[bool, Any]:
    decoder = json.JSONDecoder()
    while True:
        try:
            value, end = decoder.raw_decode(buffer.text, buffer.at)
        except (ValueError, RecursionError) as error:
            if not buffer.ended and len(buffer.text) - buffer.at < LONGEST_ELEMENT:
                buffer.fill()
                continue
            if not _breaks_off(error, buffer):
                raise DataError(
                    f"{name} is not valid JSON at row {line} ({error}); mend the file, or use JSONL"
                ) from error
            return False, None
        if end == len(buffer.text) and not buffer.ended:  # a number may go on in the next chunk
            buffer.fill()
            continue
        buffer.at = end
        return True, value


def _breaks_off(error: Exception, buffer: _Buffer) -> bool:
    if not isinstance(error, json.JSONDecodeError) or not buffer.ended:
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer.text.rstrip())
