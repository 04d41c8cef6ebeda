"""A row's columns as a document and its references, or why the row cannot be used."""

from __future__ import annotations

import json
from typing import Any

from tasks.contracts.recipe import Prompt
from tasks.ingest.chat import split_chat, split_messages
from tasks.ingest.columns import Columns
from tasks.ingest.row_types import RAW_CHARACTERS, Example, Raw, Reject
from tasks.serving.summarizer import clean, fault_of


def example_of(raw: Raw, file: str, columns: Columns, prompt: Prompt) -> Example | Reject:
    """A row's document and references, or why it cannot be used."""
    if raw.value is None:
        return Reject(file, raw.line, raw.problem, _printable(raw.text))
    try:
        id_ = _id(raw.value, columns)
        if columns.text:
            document, answer = _conversation(raw.value, columns.text)
            references: tuple[str, ...] = (answer,)
        else:
            document = _text(raw.value, columns.document or "", "document")
            references = tuple(
                text for name in columns.summary for text in _references(raw.value, name)
            )
    except ValueError as error:
        return rejected(file, raw.line, str(error), raw.value)
    return Example(file, raw.line, id_, document, references)


def rejected(file: str, line: int, problem: str, value: Any) -> Reject:
    """A reject that shows its row as JSON."""
    raw = json.dumps(value, ensure_ascii=False, default=str)
    return Reject(file, line, problem, _printable(raw))


def _printable(raw: str) -> str:
    # Lone surrogates (bytes that were no UTF-8) cannot be written; the rejects file must be.
    return raw[:RAW_CHARACTERS].encode(errors="backslashreplace").decode()[:RAW_CHARACTERS]


def _text(row: dict[str, Any], name: str, key: str) -> str:
    if name not in row:
        raise ValueError(f'has no "{name}"; add it or set data.fields.{key}')
    return _checked(row[name], f'"{name}"', key)


def _conversation(row: dict[str, Any], name: str) -> tuple[str, str]:
    """A conversation up to its last answer, and that answer, whichever form the column has."""
    value = row.get(name)
    if not isinstance(value, (list, tuple)):
        return split_chat(_text(row, name, "text"))
    try:
        return split_messages(value, lambda text, where: _checked(text, where, "text"))
    except ValueError as error:
        raise ValueError(f'"{name}" {error}') from None


def _references(row: dict[str, Any], name: str) -> tuple[str, ...]:
    value = row.get(name)
    if not isinstance(value, list):
        return (_text(row, name, "summary"),)
    if not value:
        raise ValueError(f'"{name}" is an empty list; add a summary or remove the row')
    return tuple(
        _checked(item, f'"{name}" (reference {number})', "summary")
        for number, item in enumerate(value, 1)
    )


def _checked(value: Any, where: str, key: str) -> str:
    if fault := fault_of(value):
        advice = {
            "is blank": "fill it in or remove the row",
            "is not valid Unicode (half a surrogate pair)": "save the file as UTF-8",
        }
        setting = f"correct it or set data.fields.{key}"
        raise ValueError(f"{where} {fault}; {advice.get(fault, setting)}")
    return clean(value)


def _id(row: dict[str, Any], columns: Columns) -> str:
    if not columns.id:
        return ""
    value = row.get(columns.id)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if "id" in columns.guessed and not (isinstance(value, str) and value.strip()):
        return ""  # the column was guessed, not named: file and line name a row without it
    return _text(row, columns.id, "id")
