"""Files into rows: JSONL, JSON, CSV, Parquet and Arrow; each unreadable row with its problem."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from tasks.contracts.errors import DataError
from tasks.ingest.byte_streams import BROKEN_COMPRESSION, MAX_BLANK_LINES, head_of, stamp_of
from tasks.ingest.csv_dialect import csv_form
from tasks.ingest.csv_rows import read_csv
from tasks.ingest.file_kinds import CSV, TABLES, by_mark, compression_of, data_suffix
from tasks.ingest.json_array import read_array
from tasks.ingest.json_lines import read_jsonl, too_blank
from tasks.ingest.json_objects import MAX_CHARACTERS, read_objects
from tasks.ingest.row_types import Raw, SourceFile
from tasks.ingest.table_files import column_names, read_table
from tasks.ingest.text_encoding import UTF8, encoding_of, open_text

SAMPLE_ROWS = 100  # rows looked at to learn a JSON file's columns


@dataclass(frozen=True)
class Sample:
    """The begin of a file: its columns, readable rows, the unreadable ones met, and how it is read."""

    columns: list[str]
    rows: list[dict[str, Any]]
    unreadable: list[Raw]
    read_as: list[str]  # form, delimiter, encoding, and what was changed, in words


Rows = Callable[[tuple[str, ...] | None], Iterator[Raw]]


def read(file: SourceFile, columns: tuple[str, ...] | None = None) -> Iterator[Raw]:
    """The file's rows in order. Tables read only `columns`, where they are given.

    Raises DataError for a file that is not of its format at all, that is damaged, or that somebody
    wrote to while it was read.
    """
    with _failures(file):
        rows, _ = _reader(file)
        yield from rows(columns)
        _require_unchanged(file)


def sample(file: SourceFile) -> Sample:
    """What the file's first rows show. Raises DataError as `read`."""
    rows: list[dict[str, Any]] = []
    unreadable: list[Raw] = []
    with _failures(file):
        reader, read_as = _reader(file)
        for raw in itertools.islice(reader(None), SAMPLE_ROWS):
            if raw.value is None:
                unreadable.append(raw)
            else:
                rows.append(raw.value)
        return Sample(_columns(file, rows), rows, unreadable, read_as)


def _require_unchanged(file: SourceFile) -> None:
    if file.stamp is not None and stamp_of(file.path) != file.stamp:
        raise DataError(
            f"{file.name} was changed while it was read; run again when nothing writes to it"
        )


@contextlib.contextmanager
def _failures(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except BROKEN_COMPRESSION as error:
        raise DataError(
            f"{file.name} cannot be unpacked ({error}); copy it again, and test it (gzip -t)"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{file.name} cannot be read ({reason}); correct that and run again"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.name} is not {error.encoding} ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def _columns(file: SourceFile, rows: list[dict[str, Any]]) -> list[str]:
    suffix = data_suffix(file.path.name)
    if suffix in TABLES:
        return column_names(file)
    if suffix in CSV:
        return csv_form(file).columns
    return list(dict.fromkeys(name for row in rows for name in row))


def _reader(file: SourceFile) -> tuple[Rows, list[str]]:
    """What reads the file's rows, and in words how."""
    suffix = data_suffix(file.path.name)
    if suffix in TABLES:
        return functools.partial(read_table, file), ["Parquet" if suffix == ".parquet" else "Arrow"]
    head = head_of(file)
    _require_text(file, head)
    encoding = encoding_of(file, head)
    notes = [] if encoding == UTF8 else [f"encoding: {encoding}"]
    if encoding == UTF8 and file.options.encoding:
        notes = [
            f"encoding: UTF-8, which this file is in, not {file.options.encoding} (data.encoding)"
        ]
    if suffix in CSV:
        form = csv_form(file)
        return lambda columns: read_csv(file, form), ["CSV", *notes, *form.notes]
    # By content, not by suffix: many `.json` files hold one object a line.
    form_of = _json_form(file)
    if form_of == "array":
        return lambda columns: read_array(file), ["a JSON array", *notes]
    if form_of == "objects":
        rows, words = read_objects(file)
        return lambda columns: iter(rows), [words, *notes]
    return lambda columns: read_jsonl(file), ["JSONL", *notes]


def _require_text(file: SourceFile, head: bytes) -> None:
    if again := compression_of(head):
        raise DataError(f"{file.name} is compressed twice ({again} inside); unpack it once")
    if found := by_mark(head):
        what, advice = found
        raise DataError(f"{file.name} is {what}; {advice}")


def _json_form(file: SourceFile) -> str:
    """lines, array or objects: whether the first line is a value of its own decides."""
    limit = file.options.max_row_bytes
    with open_text(file, newline="\n") as stream:
        first, following = _next_text(file, stream), ""
        if len(first) <= limit:
            following = _next_text(file, stream)
        elif not first.startswith("[") and _is_one_line(stream):
            return "objects"
    if first.startswith("["):
        # A first row that is a list costs itself alone: other rows come after it.
        return "lines" if following.startswith(("{", "[")) and _error_in(first) is None else "array"
    if not first.startswith("{") or len(first) > limit:
        return "lines"
    error = _error_in(first)
    if error is None:
        return "lines" if following else "objects"
    if not following and _is_next_object(
        first, error
    ):  # line ends are carriage returns, or there are none
        return "objects"
    # An object that goes on in the next line, or a half-written first row?
    goes_on = following and error >= len(first)
    error = _error_in(f"{first}\n{following}") if goes_on else 0
    return "objects" if error is None or error > len(first) + 1 else "lines"


def _next_text(file: SourceFile, stream: TextIO) -> str:
    """The next line that is not blank."""
    for _ in range(MAX_BLANK_LINES):
        line = stream.readline(file.options.max_row_bytes + 1)
        text = line.strip().lstrip("\ufeff")
        if text or not line:
            return text
    raise DataError(too_blank(file, MAX_BLANK_LINES))


def _is_next_object(text: str, at: int) -> bool:
    """Whether at `at` one object has ended and the next begins."""
    return text[at:].lstrip().startswith("{") and _error_in(text[:at]) is None


def _is_one_line(stream: TextIO) -> bool:
    rest = stream.read(MAX_CHARACTERS)
    return "\n" not in rest.rstrip()


def _error_in(text: str) -> int | None:
    """Where the text stops being JSON; None where it is one value."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos
    except (ValueError, RecursionError):
        return 0
    return None
