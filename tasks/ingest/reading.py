"""Files into rows: JSONL, JSON arrays, CSV and Parquet, streamed; each unreadable row with its problem."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from tasks.contracts.errors import DataError
from tasks.ingest.csv_rows import csv_header, read_csv
from tasks.ingest.json_array import read_array
from tasks.ingest.row_types import RAW_CHARACTERS, Raw, SourceFile

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
SAMPLE_ROWS = 100  # rows looked at to learn a JSON file's columns
PARQUET_BATCH = 256
# Bytes of a column read at once: by default those of a row group, however large.
PARQUET_BUFFER = 1 << 20
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read(file: SourceFile, columns: tuple[str, ...] | None = None) -> Iterator[Raw]:
    """The file's rows in order. Parquet reads only `columns`, where they are given.

    Raises DataError for a file that is not of its format at all.
    """
    return _reader(file)(file, columns)


def sample(file: SourceFile) -> tuple[list[str], list[dict[str, Any]], list[Raw]]:
    """Column names, the first readable rows, and the unreadable ones met on the way."""
    rows: list[dict[str, Any]] = []
    unreadable: list[Raw] = []
    for raw in itertools.islice(read(file), SAMPLE_ROWS):
        if raw.value is None:
            unreadable.append(raw)
        else:
            rows.append(raw.value)
    return _columns(file, rows), rows, unreadable


def _columns(file: SourceFile, rows: list[dict[str, Any]]) -> list[str]:
    suffix = file.path.suffix.lower()
    if suffix == ".parquet":
        with _parquet(file) as table:
            return list(table.schema_arrow.names)
    if suffix == ".csv":
        return csv_header(file.path, file.name)
    return list(dict.fromkeys(name for row in rows for name in row))


def _reader(file: SourceFile) -> Callable[[SourceFile, tuple[str, ...] | None], Iterator[Raw]]:
    suffix = file.path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet
    with file.path.open("rb") as stream:
        head = stream.read(4096)
    if head.startswith(UTF16_MARKS):
        raise DataError(f"{file.name} is UTF-16; save it as UTF-8")
    if suffix == ".csv":
        return lambda file, columns: read_csv(file.path, file.name)
    # By content, not by suffix: many `.json` files hold one object a line.
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return lambda file, columns: read_array(file.path, file.name)
    return _read_jsonl


def _read_jsonl(file: SourceFile, columns: tuple[str, ...] | None) -> Iterator[Raw]:
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if content.strip():
                yield _json_line(number, content)


def _json_line(number: int, line: bytes) -> Raw:
    problem = ""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
    except json.JSONDecodeError as error:
        what = "is not valid JSON" if line.endswith(b"\n") else "is half-written, not valid JSON"
        problem = f"{what} ({error.msg} at column {error.colno}); correct or remove the line"
    except (ValueError, RecursionError) as error:
        problem = f"is not usable JSON ({error}); correct or remove the line"
    else:
        if isinstance(value, dict):
            return Raw(number, value)
        problem = f"is not a JSON object with columns but {type(value).__name__}; correct the line"
    return Raw(number, None, problem, line.decode(errors="replace")[:RAW_CHARACTERS].strip())


def _parquet(file: SourceFile) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file.path, buffer_size=PARQUET_BUFFER)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{file.name} cannot be read as Parquet ({reason}); write the file again"
        ) from error


def _read_parquet(file: SourceFile, columns: tuple[str, ...] | None) -> Iterator[Raw]:
    import pyarrow

    number = 0
    with _parquet(file) as table:
        names = list(columns) if columns else None
        try:
            for batch in table.iter_batches(batch_size=PARQUET_BATCH, columns=names):
                yield from _batch(batch, number)
                number += batch.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{file.name} cannot be read after row {number} ({error}); write the file again"
            ) from error


def _batch(batch: Any, before: int) -> Iterator[Raw]:
    for index in range(batch.num_rows):
        try:
            (value,) = batch.slice(index, 1).to_pylist()
        except UnicodeDecodeError as error:
            yield Raw(before + index + 1, None, f"is not UTF-8 ({error.reason}); correct the row")
        else:
            yield Raw(before + index + 1, value)
