"""A row's columns as a document and its references, or why the row cannot be used."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tasks.contracts.documents import Document
from tasks.contracts.recipe import Prompt
from tasks.ingest.chat import answer_of, question, split_conversation
from tasks.ingest.column_roles import is_nothing, is_unused, role_of
from tasks.ingest.columns import Columns
from tasks.ingest.label_values import labels_of
from tasks.ingest.messages import Reading, as_messages, is_messages
from tasks.ingest.reasoning import settled
from tasks.ingest.row_types import RAW_CHARACTERS, Example, Raw, Reject
from tasks.serving.summarizer import clean, fault_of

_SETTLE = "use it in data.fields, or name it in data.fields.ignore"


def example_of(raw: Raw, file: str, columns: Columns, prompt: Prompt) -> Example | Reject:
    """A row's document and references, or why it cannot be used."""
    if raw.value is None:
        return Reject(file, raw.line, raw.problem, _printable(raw.text))
    try:
        _require_known_columns(raw.value, columns)
        id_, missing = _id(raw.value, columns), 0
        system = _system(raw.value, columns.system)
        document: Document
        if columns.text:
            document, answer = _conversation(raw.value, columns, system, prompt)
            references: tuple[str, ...] = (answer,)
        else:
            document = _document(raw.value, columns, system, prompt)
            references, missing = _references(raw.value, columns, prompt)
    except ValueError as error:
        return rejected(file, raw.line, str(error), raw.value)
    labels = labels_of(raw.value, columns)
    return Example(file, raw.line, id_, document, references, missing, labels)


def rejected(file: str, line: int, problem: str, value: Any) -> Reject:
    """A reject that shows its row as JSON."""
    raw = json.dumps(value, ensure_ascii=False, default=str)
    return Reject(file, line, problem, _printable(raw))


def _printable(raw: str) -> str:
    # Lone surrogates (bytes that were no UTF-8) cannot be written; the rejects file must be.
    return raw[:RAW_CHARACTERS].encode(errors="backslashreplace").decode()[:RAW_CHARACTERS]


def _require_known_columns(row: dict[str, Any], columns: Columns) -> None:
    """Refuse content that the choice of columns, made from the first rows, knew nothing of."""
    for name in columns.blank:
        if not is_unused(row.get(name)):
            raise ValueError(f'has text in "{name}", which is blank in the first rows; {_SETTLE}')
    for name in row.keys() - columns.sampled - {*columns.names, *columns.labels.values()}:
        if name in columns.ignored or is_unused(row[name]):
            continue
        if role_of(name) is None:
            columns.late.add(name)
        else:
            raise ValueError(f'has "{name}", a column that the first rows lack; {_SETTLE}')


def _text(row: dict[str, Any], name: str, key: str) -> str:
    if name not in row:
        raise ValueError(f'has no "{name}"; add it or set data.fields.{key}')
    return _checked(row[name], f'"{name}"', key)


def _conversation(
    row: dict[str, Any], columns: Columns, system: str, prompt: Prompt
) -> tuple[Document, str]:
    """A conversation up to its last answer, and that answer, whichever form the column has."""
    name = columns.text or ""
    value = row.get(name)
    with _of_column(name):
        if as_messages(value) is None:
            _text(row, name, "text")
        else:
            _require_chat(prompt)
        return split_conversation(value, system, _reading(prompt, columns, "text"))


def _document(row: dict[str, Any], columns: Columns, system: str, prompt: Prompt) -> Document:
    """The text of the document column, a conversation there, or the texts of all inputs by name."""
    if columns.inputs:
        return _inputs(row, columns)
    name = columns.document or ""
    value = row.get(name)
    if is_messages(value) and not isinstance(value, str):
        with _of_column(name):
            _require_chat(prompt)
    if prompt.format != "chat":
        return _text(row, name, "document")
    with _of_column(name):
        if not is_messages(value):
            _text(row, name, "document")
        return question(value, system, _reading(prompt, columns, "document"))


def _inputs(row: dict[str, Any], columns: Columns) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, column in columns.inputs.items():
        if name in columns.optional and is_nothing(row.get(column)):
            texts[name] = ""
        else:
            texts[name] = _text(row, column, "inputs")
    if not any(texts.values()):
        raise ValueError(
            f"has only blank inputs ({', '.join(texts)}); fill one in or remove the row"
        )
    return texts


def _references(
    row: dict[str, Any], columns: Columns, prompt: Prompt
) -> tuple[tuple[str, ...], int]:
    """All references of a row, and how many of several are null: one is enough.

    A blank column counts as null, as CSV writes it; a blank text in a list is a mistake.
    """
    values: list[tuple[Any, str]] = []
    for name in columns.summary:
        value = row.get(name)
        if prompt.format == "chat":
            with _of_column(name):
                value = answer_of(value, _reading(prompt, columns, "summary")) or value
        if isinstance(value, dict) and isinstance(value.get("text"), list):
            value = value["text"]  # SQuAD's answers: {"text": [...], "answer_start": [...]}
        if isinstance(value, list) and value:
            values += [
                (item, f'"{name}" (reference {number})') for number, item in enumerate(value, 1)
            ]
        else:
            values.append((None if is_nothing(value) else value, f'"{name}"'))
    present = [(value, where) for value, where in values if value is not None]
    if not present:
        _refuse_missing(row, columns)
    texts = [
        settled(_checked(value, where, "summary"), "", where, prompt.reasoning)
        for value, where in present
    ]
    return tuple(texts), len(values) - len(present)


def _refuse_missing(row: dict[str, Any], columns: Columns) -> None:
    """Raise ValueError for a row with no reference at all."""
    for name in columns.summary:
        if name not in row:
            raise ValueError(f'has no "{name}"; add it or set data.fields.summary')
        value = row[name].get("text", row[name]) if isinstance(row[name], dict) else row[name]
        if is_nothing(value) and isinstance(value, (list, dict)):
            raise ValueError(f'"{name}" is an empty list; add a summary or remove the row')
        _checked(row[name] if isinstance(row[name], str) else None, f'"{name}"', "summary")


def _system(row: dict[str, Any], name: str | None) -> str:
    """The row's own system message; nothing where the column is blank."""
    value = row.get(name) if name else None
    return "" if is_nothing(value) else _checked(value, f'"{name}"', "system").strip()


def _reading(prompt: Prompt, columns: Columns, key: str) -> Reading:
    return Reading(
        lambda text, where: _checked(text, where, key),
        prompt.reasoning,
        frozenset(columns.ignored),
    )


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
    if "id" in columns.guessed and is_nothing(value):
        return ""  # the column was guessed, not named: file and line name a row without it
    if columns.id in row and is_nothing(value):
        raise ValueError(
            f'"{columns.id}" is null; fill it in, or leave data.fields.id out: rows are then named by file '
            "and line"
        )
    if isinstance(value, (bool, list, dict)):
        return "" if "id" in columns.guessed else _text(row, columns.id, "id")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # pandas writes whole numbers so where some rows have none
    if isinstance(value, bytes):
        return value.hex()
    return _text({columns.id: value if isinstance(value, str) else str(value)}, columns.id, "id")
