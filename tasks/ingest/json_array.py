"""One JSON array of objects, read element by element, so that a large file is never wholly in memory.

Considered: ijson 3.6. Its C backend reads a lone surrogate as "?", stops the whole file at a byte that is
not UTF-8 or at NaN, has no text of a broken row, and needs memory in the square of the nesting depth (50 kB
of "[" took over 3 GB); its Python backend does not cut off such nesting and takes 4 times as long as this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from tasks.contracts.errors import DataError
from tasks.ingest.json_values import Decoder, is_too_long, too_long
from tasks.ingest.row_types import RAW_CHARACTERS, Raw, SourceFile
from tasks.ingest.text_encoding import open_text, undecodable

CHUNK = 1 << 20
BLANKS = re.compile(r"\s*")


class _Buffer:
    """The part of the file not yet parsed; `fill` reads more of it."""

    def __init__(self, stream: TextIO, file: SourceFile) -> None:
        self.stream, self.text, self.at, self.ended = stream, "", 0, False
        self.file, self.decoder = file, Decoder()

    def fill(self) -> None:
        # At least as much as is unparsed: so a long element is parsed again only a few times.
        more = self.stream.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not more
        self.text, self.at = self.text[self.at :] + more, 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        blank = 0
        while True:
            start = self.at
            if found := BLANKS.match(self.text, self.at):
                self.at = found.end()
            blank += self.at - start
            if blank > self.file.options.max_row_bytes:
                raise DataError(f"{self.file.name}: megabytes of white space; write the file again")
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.fill()


def read_array(file: SourceFile) -> Iterator[Raw]:
    """The array's elements, numbered from 1. Of a file that ends too early only the last row is lost.

    Raises DataError where the file is broken before its end, or an element is over the limit: the rows
    after that cannot be separated.
    """
    with open_text(file, newline="\n") as stream:
        buffer = _Buffer(stream, file)
        buffer.peek()
        buffer.at += 1  # the opening bracket, which the caller has seen
        yield from _elements(buffer)


def _elements(buffer: _Buffer) -> Iterator[Raw]:
    name, line = buffer.file.name, 0
    while (mark := buffer.peek()) != "]":
        line += 1
        if not mark:
            yield Raw(line, None, "is missing: the array is not closed; write the file again")
            return
        start = buffer.text[buffer.at : buffer.at + RAW_CHARACTERS]
        complete, element, text = _element(buffer, line)
        if not complete:
            yield Raw(
                line, None, "is half-written: the file ends within it; write the file again", start
            )
            return
        limit = buffer.file.options.max_row_bytes
        problem = too_long(limit) if is_too_long(text, limit) else undecodable(buffer.file, text)
        if problem:
            yield Raw(line, None, problem, start)
        else:
            yield buffer.decoder.row(line, element, text)
        _past_comma(buffer, line)
    buffer.at += 1
    if buffer.peek():
        raise DataError(f"{name} has text after its array of {line} rows; remove it, or use JSONL")


def _past_comma(buffer: _Buffer, line: int) -> None:
    mark = buffer.peek()
    if mark == ",":
        buffer.at += 1
    elif mark not in ("]", ""):
        raise DataError(
            f"{buffer.file.name}: no comma after row {line}; correct the file, or use JSONL"
        )


def _element(buffer: _Buffer, line: int) -> tuple[bool, Any, str]:
    name, limit = buffer.file.name, buffer.file.options.max_row_bytes
    while True:
        try:
            value, end = buffer.decoder.next(buffer.text, buffer.at)
        except (ValueError, RecursionError) as error:
            if not buffer.ended and not is_too_long(buffer.text[buffer.at :], limit):
                buffer.fill()
                continue
            early = _ends_too_early(error, buffer)
            if early and not buffer.ended:
                raise DataError(f"{name}: row {line} {too_long(limit)}") from error
            if not early:
                raise DataError(
                    f"{name} is not valid JSON at row {line} ({error}); correct the file, or use JSONL"
                ) from error
            return False, None, ""
        if end == len(buffer.text) and not buffer.ended:  # a number may go on in the next chunk
            buffer.fill()
            continue
        text, buffer.at = buffer.text[buffer.at : end], end
        return True, value, text


def _ends_too_early(error: Exception, buffer: _Buffer) -> bool:
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer.text.rstrip())
