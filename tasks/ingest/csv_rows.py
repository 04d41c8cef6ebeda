"""CSV into rows: a header, then a row a record, which may span lines inside quotes.

Where a quote is missing or a record has too few or too many fields, nothing tells where the next record
begins: a line of a text may look like a row. So such a file is refused with the lines to correct, as Arrow
and polars do; no row is guessed from pieces. The one exception is a last line that ends in the middle.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

from tasks.contracts.errors import DataError
from tasks.contracts.formatting import listed
from tasks.ingest.csv_dialect import CsvForm, csv_form
from tasks.ingest.json_values import is_too_long, too_long
from tasks.ingest.row_types import RAW_CHARACTERS, Raw, SourceFile
from tasks.ingest.text_encoding import open_text, undecodable

MARK = "\ufeff"  # begins a file; within one it shows that files were joined
DOUBLE = '""'
LISTED_LINES = 10
ADVICE = (
    "where the next record begins is then not known, and lines of a text could pass for rows: nothing of the "
    "file is used. Double each quote inside a quoted field, and quote each field that holds a delimiter, a "
    "quote or a line end; or write the file with a CSV library, or as JSONL"
)


class TooLongRecord(Exception):
    """A record over the limit; `line`: where it was noticed."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


class _Lines:
    """A file's lines, those of the current record stored."""

    def __init__(self, stream: TextIO, limit: int) -> None:
        self.stream, self.limit = stream, limit
        self.record: list[str] = []
        self.characters = self.number = 0

    def begin(self) -> int:
        """Start a record; returns its line."""
        self.record.clear()
        self.characters = 0
        return self.number + 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.stream.readline(self.limit + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.characters += len(line)
        self.record.append(line)
        if self.characters > self.limit:
            raise TooLongRecord(self.number)
        return line

    @property
    def text(self) -> str:
        """The current record as the file has it."""
        return "".join(self.record)


@dataclass
class _Miscounted:
    """Records with a wrong number of fields: the first of them in words, and their lines."""

    first: str = ""
    lines: list[int] = field(default_factory=list)

    def add(self, line: int, fields: int, expected: int) -> None:
        if not self.lines:
            self.first = f"has {fields} fields where the header has {expected}"
            if expected == 1:
                self.first += " (is line 1 the header?)"
            elif fields == expected + 1:
                self.first += (
                    " (an unquoted delimiter, or a column without a name before the others)"
                )
        self.lines.append(line)


def read_csv(file: SourceFile, form: CsvForm | None = None) -> Iterator[Raw]:
    """The rows after the header; `line` is where a row starts.

    Raises DataError once a record is met that cannot be separated from the next.
    """
    form = form or csv_form(file)
    csv.field_size_limit(file.options.max_row_bytes + 1)
    with open_text(file, newline="") as stream:
        lines = _Lines(stream, file.options.max_row_bytes)
        reader = csv.reader(lines, strict=True, delimiter=form.delimiter)
        next((fields for fields in reader if fields), None)  # the header
        yield from _records(file, form, lines, reader)


def _records(
    file: SourceFile, form: CsvForm, lines: _Lines, reader: Iterator[list[str]]
) -> Iterator[Raw]:
    miscounted = _Miscounted()
    while True:
        start = lines.begin()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if not miscounted.lines and _is_last_line(lines, error):
                yield Raw(start, None, "is half-written: a quote is not closed", _shown(lines))
                return
            raise _refusal(file, start, lines, error, miscounted) from error
        except TooLongRecord as error:
            raise DataError(
                f"{file.name}:{start} the record that begins here {too_long(lines.limit)}, or close a quote "
                f"that is open until line {error.line}"
            ) from error
        if fields is None:
            break
        if not fields:
            continue
        if len(fields) != len(form.columns):
            if len(fields) < len(form.columns) and _cut_off(lines) and not miscounted.lines:
                problem = f"is half-written: {len(fields)} of {len(form.columns)} fields"
                yield Raw(start, None, problem, _shown(lines))
                return
            miscounted.add(start, len(fields), len(form.columns))
        elif not miscounted.lines:
            yield _row(file, form, start, fields, lines)
    if miscounted.lines:
        raise DataError(_miscounted_text(file, miscounted))


def _cut_off(lines: _Lines) -> bool:
    return not lines.text.endswith(("\n", "\r"))  # so it is the file's last


def _is_last_line(lines: _Lines, error: csv.Error) -> bool:
    return str(error) == "unexpected end of data" and len(lines.record) == 1


def _refusal(
    file: SourceFile, start: int, lines: _Lines, error: csv.Error, miscounted: _Miscounted
) -> DataError:
    if miscounted.lines:
        return DataError(_miscounted_text(file, miscounted))
    if str(error) == "unexpected end of data":
        what = f"a quote opens in it and is not closed until the end, line {lines.number}"
    elif '\\"' in lines.text:
        what = f"a backslash before a quote (line {lines.number}) is no escape in CSV"
    elif "new-line" in str(error):
        what = f"a carriage return stands alone outside quotes (line {lines.number})"
    else:
        what = f"{error}, line {lines.number}: a quote that is not doubled"
    return DataError(
        f"{file.name}:{start} the record that begins here is broken ({what}); {ADVICE}"
    )


def _miscounted_text(file: SourceFile, miscounted: _Miscounted) -> str:
    first, *others = miscounted.lines
    also = f" (so have lines {listed([*map(str, others)], LISTED_LINES)})" if others else ""
    return f"{file.name}:{first} {miscounted.first}{also}; {ADVICE}"


def _row(file: SourceFile, form: CsvForm, start: int, fields: list[str], lines: _Lines) -> Raw:
    text = lines.text
    if _bare_quote(fields, text):
        raise DataError(
            f"{file.name}:{start} has a quote in a field that is not quoted, or a blank before an opening "
            f"quote; {ADVICE}"
        )
    if form.only_carriage_returns:
        if "\n" in text:
            raise DataError(
                f"{file.name}:{start} is the first line to hold a line feed: the file's other lines end in "
                "carriage returns alone; write the file again with one kind of line ends"
            )
        fields = [value.replace("\r", "\n") for value in fields]
    elif text.endswith("\r"):
        raise DataError(
            f"{file.name}:{start} ends in a carriage return alone, unlike the other lines; {ADVICE}"
        )
    problem = undecodable(file, text)
    if [value.removeprefix(MARK).strip() for value in fields] == [
        value.strip() for value in form.header_fields
    ]:
        problem = "repeats the header, as in files that were joined; remove the line"
    elif "\0" in text:
        problem = "holds a NUL byte, which text does not; correct or remove the row"
    elif not problem and is_too_long(text, lines.limit):
        problem = too_long(lines.limit)
    if problem:
        return Raw(start, None, problem, _shown(lines))
    return Raw(start, dict(zip(form.columns, fields, strict=True)))


def _bare_quote(fields: list[str], text: str) -> bool:
    """Whether a field that is not quoted holds a quote: one of a pair that is missing its other, perhaps."""
    return any(
        '"' in value and f'"{value.replace(DOUBLE[:1], DOUBLE)}"' not in text for value in fields
    )


def _shown(lines: _Lines) -> str:
    return lines.text[:RAW_CHARACTERS].rstrip()
