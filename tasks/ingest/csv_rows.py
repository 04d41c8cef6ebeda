"""CSV into rows: a header, then a row a record, which may span lines inside quotes."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tasks.contracts.errors import DataError
from tasks.ingest.row_types import RAW_CHARACTERS, Raw

# The csv module's own limit (131,072 characters) is shorter than long documents; without a limit, an
# unclosed quote would take in the rest of the file.
LONGEST_FIELD = 1 << 24


class _Lines:
    """A file's lines; those of the current record are stored, so that they can be read again."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.record: list[str] = []
        self.to_reread: deque[str] = deque()
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.to_reread.popleft() if self.to_reread else next(self.stream)
        self.number += 1
        self.record.append(line)
        return line

    def back_to_second(self) -> None:
        """Go back to just after the current record's first line."""
        later_lines = self.record[1:]
        self.to_reread.extendleft(reversed(later_lines))
        self.number -= len(later_lines)


def _open(path: Path) -> TextIO:
    # newline="" leaves line ends to the csv module; undecodable bytes become surrogates, which
    # the check of each field refuses.
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def csv_header(path: Path, name: str) -> list[str]:
    """The column names of the first line. Raises DataError when it is not CSV or repeats a name."""
    csv.field_size_limit(LONGEST_FIELD)
    with _open(path) as stream:
        try:
            header = next(csv.reader(stream, strict=True), [])
        except csv.Error as error:
            raise DataError(f"{name}:1 is not a CSV header ({error}); correct the line") from error
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise DataError(f"{name}:1 names columns twice: {', '.join(repeated)}; rename one of each")
    return header


def read_csv(path: Path, name: str) -> Iterator[Raw]:
    """The rows after the header; `line` is where a row starts.

    Of a record that cannot be read only the first line is rejected; reading continues at the next.
    """
    header = csv_header(path, name)
    with _open(path) as stream:
        lines = _Lines(stream)
        reader = csv.reader(lines, strict=True)
        next(reader, None)
        while True:
            lines.record.clear()
            start = lines.number + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield _unreadable(start, lines, error)
                continue
            if fields is None:
                return
            if fields:
                yield _row(start, header, fields, lines)


def _unreadable(start: int, lines: _Lines, error: csv.Error) -> Raw:
    problem = f"is not valid CSV ({error}): a half-written row, or a quote that is not doubled"
    text = lines.record[0][:RAW_CHARACTERS].rstrip()
    lines.back_to_second()
    return Raw(start, None, problem, text)


def _row(start: int, header: list[str], fields: list[str], lines: _Lines) -> Raw:
    if len(fields) == len(header):
        return Raw(start, dict(zip(header, fields, strict=True)))
    problem = f"has {len(fields)} fields where the header has {len(header)}; correct the row"
    return Raw(start, None, problem, "".join(lines.record)[:RAW_CHARACTERS].rstrip())
