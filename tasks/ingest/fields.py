"""A row's columns as a document and its references, or why the row cannot be used."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tasks.contracts.documents import Document
from tasks.contracts.recipe import Prompt
from tasks.ingest.chat import answer_of, question, split_conversation
from tasks.ingest.columns import Columns
from tasks.ingest.messages import Reading, as_messages, is_messages, without_reasoning
from tasks.ingest.row_types import RAW_CHARACTERS, Example, Raw, Reject
from tasks.serving.summarizer import clean, fault_of


def example_of(raw: Raw, file: str, columns: Columns, prompt: Prompt) -> Example | Reject:
    """A row's document and references, or why it cannot be used."""
    if raw.value is None:
        return Reject(file, raw.line, raw.problem, _printable(raw.text))
    try:
        id_ = _id(raw.value, columns)
        if columns.text:
            document, answer = _conversation(raw.value, columns.text, "", prompt)
            references: tuple[str, ...] = (answer,)
        else:
            document = _document(raw.value, columns.document or "", "", prompt)
            references = tuple(
                text for name in columns.summary for text in _references(raw.value, name, prompt)
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


def _conversation(
    row: dict[str, Any], name: str, system: str, prompt: Prompt
) -> tuple[Document, str]:
    """A conversation up to its last answer, and that answer, whichever form the column has."""
    value = row.get(name)
    with _of_column(name):
        if as_messages(value) is None:
            _text(row, name, "text")
        else:
            _require_chat(prompt)
        return split_conversation(value, system, _reading(prompt, "text"))


def _document(row: dict[str, Any], name: str, system: str, prompt: Prompt) -> Document:
    value = row.get(name)
    if is_messages(value) and not isinstance(value, str):
        with _of_column(name):
            _require_chat(prompt)
    if prompt.format != "chat":
        return _text(row, name, "document")
    with _of_column(name):
        if not is_messages(value):
            _text(row, name, "document")
        return question(value, system, _reading(prompt, "document"))


def _references(row: dict[str, Any], name: str, prompt: Prompt) -> tuple[str, ...]:
    value = row.get(name)
    if prompt.format == "chat":
        with _of_column(name):
            answer = answer_of(value, _reading(prompt, "summary"))
        if answer is not None:
            return (answer,)
    texts = [(value, f'"{name}"')]
    if isinstance(value, list):
        texts = [(item, f'"{name}" (reference {number})') for number, item in enumerate(value, 1)]
    elif name not in row:
        _text(row, name, "summary")
    if not texts:
        raise ValueError(f'"{name}" is an empty list; add a summary or remove the row')
    strip = prompt.reasoning == "strip"
    return tuple(
        without_reasoning(_checked(text, where, "summary"), where, strip) for text, where in texts
    )


def _reading(prompt: Prompt, key: str) -> Reading:
    return Reading(lambda text, where: _checked(text, where, key), prompt.reasoning == "strip")


def _require_chat(prompt: Prompt) -> None:
    if prompt.format != "chat":
        raise ValueError(
            "is a list of messages, and prompt.format template has a place for one text; set "
            "prompt.format: chat"
        )


@contextlib.contextmanager
def _of_column(name: str) -> Iterator[None]:
    """Names the column in what is wrong with its messages."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(f'"{name}"') else f'"{name}" {text}') from None


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
