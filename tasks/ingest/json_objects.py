"""JSON that is neither lines nor an array: one object, or indented objects one after another.

One object holds rows by name ({"data": [...]}), or columns ({"document": [...], "summary": [...]}, or as
pandas.to_json writes them), or is one row. It is read whole, so its size is limited.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tasks.contracts.errors import DataError
from tasks.ingest.json_values import Decoder, is_too_long, too_long
from tasks.ingest.row_types import RAW_CHARACTERS, Raw, SourceFile, shown
from tasks.ingest.text_encoding import open_text, undecodable

MAX_CHARACTERS = 1 << 26  # about 500 MB of memory
# Names that libraries and exports give to a list of rows.
HOLDERS = (
    "data",
    "rows",
    "examples",
    "records",
    "items",
    "instances",
    "samples",
    "dataset",
    "results",
)
BLANKS = re.compile(r"[\s\ufeff]*")
# A list of objects with these is one conversation, not rows.
MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})


def read_objects(file: SourceFile) -> tuple[list[Raw], str]:
    """The file's rows and in what form they stand, in words.

    Raises DataError where objects cannot be separated, or an object's rows cannot be told from its
    columns.
    """
    decoder = Decoder()
    values = list(_values(file, decoder))
    if len(values) != 1 or not isinstance(values[0][1], dict):
        rows = [raw for raw, _ in values]
        return [_limited(raw, file) for raw in rows], "JSON objects one after another"
    rows, form = _rows_of(file, values[0][1], decoder)
    return [_limited(raw, file) for raw in rows], form


def _values(file: SourceFile, decoder: Decoder) -> Iterator[tuple[Raw, Any]]:
    """Each value as a row, and as it is."""
    with open_text(file, newline=None) as stream:
        text = stream.read(MAX_CHARACTERS + 1)
    if len(text) > MAX_CHARACTERS:
        raise DataError(
            f"{file.name} is one JSON value, or indented ones, of over {MAX_CHARACTERS >> 20} MiB, which are "
            "read whole; write an object a line (jq -c '.data[]' for rows under \"data\", jq -c . for "
            "indented objects)"
        )
    at, line = 0, 1
    while (start := _past_blanks(text, at)) < len(text):
        line += text.count("\n", at, start)
        try:
            value, at = decoder.next(text, start)
        except (ValueError, RecursionError) as error:
            raise DataError(_broken(file, line, error)) from error
        content = text[start:at]
        yield decoder.row(line, value, content), value
        line += content.count("\n")


def _past_blanks(text: str, at: int) -> int:
    found = BLANKS.match(text, at)
    return found.end() if found else at


def _broken(file: SourceFile, line: int, error: Exception) -> str:
    where = (
        f"{error.msg} at line {error.lineno}"
        if isinstance(error, json.JSONDecodeError)
        else str(error)
    )
    return (
        f"{file.name}:{line} the JSON object that begins here is broken ({where}), and where the next begins "
        "is not known; correct it, or write an object a line (JSONL)"
    )


def _limited(raw: Raw, file: SourceFile) -> Raw:
    """The row, unless it is too long or holds bytes that are not of the file's encoding."""
    if raw.value is None:
        return raw
    text = json.dumps(raw.value, ensure_ascii=False, default=str)
    limit = file.options.max_row_bytes
    problem = too_long(limit) if is_too_long(text, limit) else undecodable(file, text)
    return Raw(raw.line, None, problem, text[:RAW_CHARACTERS]) if problem else raw


def _rows_of(file: SourceFile, value: dict[str, Any], decoder: Decoder) -> tuple[list[Raw], str]:
    """The rows that one object holds, and in which form."""
    table = value.get("data")
    if "columns" in value and isinstance(table, list) and table and isinstance(table[0], list):
        return _split_form(value["columns"], table)
    lists = {name: item for name, item in value.items() if _is_rows(item)}
    if any(_is_conversation(item) for item in lists.values()):
        return [decoder.row(1, value, str(value))], "one JSON object, a row"
    if lists:
        return _held(file, value, lists, decoder)
    if value and all(isinstance(item, list) for item in value.values()):
        return _columns(file, value, {name: list(enumerate(item)) for name, item in value.items()})
    if value and all(isinstance(item, dict) for item in value.values()):
        return _pandas(file, value)
    return [decoder.row(1, value, str(value))], "one JSON object, a row"


def _is_rows(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and isinstance(item[0], dict)


def _is_conversation(rows: list[Any]) -> bool:
    return any(keys <= set(rows[0]) for keys in MESSAGE_KEYS)


def _split_form(columns: list[str], table: list[Any]) -> tuple[list[Raw], str]:
    """{"columns": [...], "data": [[...], ...]}, as pandas.to_json(orient="split") writes it."""
    rows = [
        Raw(n, dict(zip(columns, row, strict=True)))
        if isinstance(row, list) and len(row) == len(columns)
        else Raw(n, None, f"has not the {len(columns)} values of the columns; correct it", str(row))
        for n, row in enumerate(table, 1)
    ]
    return rows, 'one JSON object of "columns" and "data"'


def _held(
    file: SourceFile, value: dict[str, Any], lists: dict[str, list[Any]], decoder: Decoder
) -> tuple[list[Raw], str]:
    name = next(iter(lists))
    known = [n for n in lists if n.lower() in HOLDERS]
    if len(lists) > 1 or not known:
        raise DataError(
            f"{file.name} is one JSON object with lists under {shown(list(lists))}: which of them are the "
            f"rows is not known; write the list you mean as a file (jq -c '.\"{name}\"[]' FILE > rows.jsonl)"
        )
    rows = [decoder.row(n, item, str(item)) for n, item in enumerate(lists[name], 1)]
    others = [other for other in value if other != name]
    beside = f"; not read beside it: {shown(others)}" if others else ""
    return rows, f'one JSON object, the rows under "{name}"{beside}'


def _columns(
    file: SourceFile, value: dict[str, Any], columns: dict[str, list[tuple[Any, Any]]]
) -> tuple[list[Raw], str]:
    lengths = {name: len(column) for name, column in columns.items()}
    first = next(iter(columns.values()))
    keys = [key for key, _ in first]
    for name, column in columns.items():
        if [key for key, _ in column] != keys:
            raise DataError(
                f"{file.name} is one JSON object of columns that are not equally long or not of the same "
                f"rows ({', '.join(f'{n}: {count}' for n, count in lengths.items())}; see {name}); write "
                "the file again, a row a line"
            )
    names = list(columns)
    rows = [
        Raw(n, dict(zip(names, [item for _, item in cells], strict=True)))
        for n, cells in enumerate(zip(*columns.values(), strict=True), 1)
    ]
    return rows, f"one JSON object of {len(names)} columns"


def _pandas(file: SourceFile, value: dict[str, Any]) -> tuple[list[Raw], str]:
    """{column: {index: value}} as pandas.to_json writes it, or {index: {column: value}}."""
    outer_numbers = all(name.isdigit() for name in value)
    inner_numbers = all(key.isdigit() for item in value.values() for key in item)
    if outer_numbers == inner_numbers:
        raise DataError(
            f"{file.name} is one JSON object of objects ({shown(list(value), 5)}): whether they are rows or "
            "columns is not known; write the file again, a row a line"
        )
    if outer_numbers:
        rows = [Raw(n, row) for n, row in enumerate(value.values(), 1)]
        return rows, "one JSON object of rows by number"
    return _columns(file, value, {name: list(item.items()) for name, item in value.items()})
