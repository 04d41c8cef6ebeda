"""A CSV file's delimiter and column names, found from its first lines.

csv.Sniffer guesses the delimiter from letter counts, which in texts are often wrong; here a delimiter is
taken only where it alone splits the header, or alone splits all first records as it splits the header.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

from tasks.contracts.errors import DataError
from tasks.ingest.row_types import SourceFile, shown
from tasks.ingest.text_encoding import open_text, undecodable

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
PROBE_CHARACTERS, PROBE_RECORDS = 1 << 18, 50
LONGEST_NAME = 200  # characters; a longer "column name" is a text: the file has no header


@dataclass(frozen=True)
class CsvForm:
    """How a file is written. `columns`: the header's names as they are used."""

    delimiter: str
    header_fields: list[str]
    columns: list[str]
    only_carriage_returns: bool  # line ends, within texts too, are read as line feeds

    @property
    def notes(self) -> list[str]:
        """What was found or changed, in words, for the data report."""
        notes = []
        if self.delimiter != ",":
            notes.append(f"delimiter: {DELIMITERS[self.delimiter]}")
        for raw, name in zip(self.header_fields, self.columns, strict=True):
            if raw != name:
                what = "a column without a name" if not raw.strip() else f'column "{raw}"'
                notes.append(f'{what} is called "{name}"')
        if self.only_carriage_returns:
            notes.append(
                "line ends are carriage returns alone; read as line feeds, within texts too"
            )
        return notes


def csv_form(file: SourceFile) -> CsvForm:
    """Delimiter and column names. Raises DataError where either cannot be told, or names repeat."""
    csv.field_size_limit(file.options.max_row_bytes + 1)
    with open_text(file, newline="") as stream:
        probe = stream.read(PROBE_CHARACTERS)
    whole = len(probe) < PROBE_CHARACTERS
    _refuse_other_forms(file, probe)
    delimiter = _delimiter(file, probe, whole)
    fields = _header(file, probe, delimiter)
    columns = [name.strip() or f"Unnamed: {place}" for place, name in enumerate(fields)]
    _check_names(file, columns)
    return CsvForm(delimiter, fields, columns, "\r" in probe and "\n" not in probe)


def _refuse_other_forms(file: SourceFile, probe: str) -> None:
    first = probe.lstrip()[:1]
    if first in ("{", "["):
        raise DataError(f"{file.name} holds JSON, not CSV; name it .jsonl or .json")
    if re.match(r"sep=.\r?\n", probe):
        raise DataError(
            f"{file.name}:1 is Excel's line for the delimiter, no header; remove the line"
        )


def _delimiter(file: SourceFile, probe: str, whole: bool) -> str:
    counts = {mark: _counts(probe, mark, whole) for mark in DELIMITERS}
    possible = [mark for mark, found in counts.items() if found and found[0] > 1]
    if len(possible) > 1:
        possible = [mark for mark in possible if len(set(counts[mark])) == 1] or possible
    if len(possible) > 1:
        names = " or ".join(DELIMITERS[mark] for mark in possible)
        raise DataError(
            f"{file.name}: the delimiter may be {names}; write the file with one of them, and quote "
            "column names that hold the other"
        )
    return possible[0] if possible else ","


def _counts(probe: str, delimiter: str, whole: bool) -> list[int]:
    """The first records' numbers of fields; 0 for one that cannot be read."""
    counts: list[int] = []
    try:
        # Every record of the probe but the last, which may go on after it.
        for fields in csv.reader(io.StringIO(probe, newline=""), strict=True, delimiter=delimiter):
            counts += [len(fields)] if fields else []
            if len(counts) > PROBE_RECORDS:
                return counts
    except csv.Error:
        return [*counts, 0] if whole else counts
    return counts if whole else counts[:-1]


def _header(file: SourceFile, probe: str, delimiter: str) -> list[str]:
    try:
        records = csv.reader(io.StringIO(probe, newline=""), strict=True, delimiter=delimiter)
        fields = next((fields for fields in records if fields), [])
    except csv.Error as error:
        raise DataError(f"{file.name}:1 is not a CSV header ({error}); correct the line") from error
    text = delimiter.join(fields)
    problem = "holds NUL bytes; write the file again" if "\0" in text else undecodable(file, text)
    if problem:
        raise DataError(f"{file.name}:1 {problem}")
    return fields


def _check_names(file: SourceFile, columns: list[str]) -> None:
    if any(len(name) > LONGEST_NAME or "\n" in name for name in columns):
        raise DataError(
            f"{file.name}:1 looks like a row, not like column names: {shown(columns, 3)}; add a header line"
        )
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise DataError(f"{file.name}:1 names columns twice: {shown(repeated)}; rename one of each")
