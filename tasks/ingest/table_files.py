"""Parquet and Arrow files into rows, a few at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tasks.contracts.errors import DataError
from tasks.ingest.json_values import too_long
from tasks.ingest.row_types import Raw, SourceFile, shown

BATCH_ROWS, BATCH_BYTES = 256, 1 << 27
# Bytes of a Parquet column read at once: by default those of a row group, however large.
PARQUET_BUFFER = 1 << 20
ARROW_FILE_MARK = b"ARROW1"


def column_names(file: SourceFile) -> list[str]:
    """The table's columns. Raises DataError for a file that is damaged, or names a column twice."""
    with _failures(file, 0):
        if file.path.suffix.lower() == ".parquet":
            with _parquet(file) as table:
                names = list(table.schema_arrow.names)
        else:
            with _arrow(file) as reader:
                names = list(reader.schema.names)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{file.name} names columns twice: {shown(repeated)}; rename one of each")
    return names


def read_table(file: SourceFile, columns: tuple[str, ...] | None) -> Iterator[Raw]:
    """The rows, numbered from 1; only `columns`, where they are given."""
    is_parquet = file.path.suffix.lower() == ".parquet"
    batches = _parquet_batches(file, columns) if is_parquet else _arrow_batches(file, columns)
    number = 0
    while True:
        with _failures(file, number):
            batch = next(batches, None)
        if batch is None:
            return
        yield from _rows(file, batch, number)
        number += batch.num_rows


def _parquet(file: SourceFile) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(file.path, buffer_size=PARQUET_BUFFER)


def _parquet_batches(file: SourceFile, columns: tuple[str, ...] | None) -> Iterator[Any]:
    names = list(columns) if columns else None
    with _parquet(file) as table:
        for group in range(table.num_row_groups):
            mean = _mean_row_bytes(table.metadata.row_group(group), columns)
            if mean > file.options.max_row_bytes:
                raise DataError(
                    f"{file.name}: a row of its row group {group + 1} has {mean} bytes on average; each "
                    f"{too_long(file.options.max_row_bytes)}"
                )
            size = max(1, min(BATCH_ROWS, BATCH_BYTES // max(mean, 1)))
            yield from table.iter_batches(batch_size=size, row_groups=[group], columns=names)


def _mean_row_bytes(group: Any, columns: tuple[str, ...] | None) -> int:
    parts = [group.column(index) for index in range(group.num_columns)]
    used = [p for p in parts if not columns or p.path_in_schema.split(".")[0] in columns]
    return int(sum(part.total_uncompressed_size for part in used) // max(group.num_rows, 1))


@contextlib.contextmanager
def _arrow(file: SourceFile) -> Iterator[Any]:
    """A reader of either form that Arrow files have: with a footer, or a stream, as datasets writes it."""
    import pyarrow

    with pyarrow.memory_map(str(file.path)) as source:
        is_file = source.read(len(ARROW_FILE_MARK)) == ARROW_FILE_MARK
        source.seek(0)
        yield pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)


def _arrow_batches(file: SourceFile, columns: tuple[str, ...] | None) -> Iterator[Any]:
    with _arrow(file) as reader:
        whole = (
            (reader.get_batch(n) for n in range(reader.num_record_batches))
            if hasattr(reader, "num_record_batches")
            else reader
        )
        for batch in whole:
            used = batch.select(list(columns)) if columns else batch
            for start in range(0, used.num_rows, BATCH_ROWS):
                yield used.slice(start, BATCH_ROWS)


def _rows(file: SourceFile, batch: Any, before: int) -> Iterator[Raw]:
    limit = file.options.max_row_bytes
    some_may_be_long = batch.nbytes > limit
    for index in range(batch.num_rows):
        line, row = before + index + 1, batch.slice(index, 1)
        if some_may_be_long and _row_bytes(row) > limit:
            yield Raw(line, None, too_long(limit))
            continue
        try:
            (value,) = row.to_pylist()
        except UnicodeDecodeError as error:
            yield Raw(line, None, f"is not UTF-8 ({error.reason}); correct the row")
        else:
            yield Raw(line, value)


def _row_bytes(row: Any) -> int:
    """Bytes of the row's values; of a column that is stored as a dictionary not of the whole dictionary."""
    columns = (getattr(column, "dictionary_decode", lambda c=column: c)() for column in row.columns)
    return sum(column.nbytes for column in columns)


@contextlib.contextmanager
def _failures(file: SourceFile, rows: int) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        form = "Parquet" if file.path.suffix.lower() == ".parquet" else "Arrow"
        reason = str(error).splitlines()[0]
        after = f" after row {rows}" if rows else ""
        raise DataError(
            f"{file.name} cannot be read as {form}{after} ({reason}); write the file again"
        ) from error
