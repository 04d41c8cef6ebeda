"""Which column is what: named by the recipe or guessed, then applied to every row."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, replace
from typing import Any

from tasks.contracts.recipe import Fields, Prompt
from tasks.ingest.chat import CLOSE, is_messages, split_chat, split_messages
from tasks.ingest.row_types import RAW_CHARACTERS, Example, Raw, Reject, shown

# In order: the first pair that a file has wins, so `text, summary` (BillSum) comes before
# `question, answer`, and DialogSum's numbered references count as `summary`.
PAIRS = (
    ("dialogue", "summary"),
    ("document", "summary"),
    ("article", "highlights"),
    ("article", "abstract"),
    ("article", "summary"),
    ("conversation", "summary"),
    ("transcript", "summary"),
    ("text", "summary"),
    ("question", "answer"),
    ("document", "target"),
    ("source", "target"),
    ("input", "output"),
    ("prompt", "completion"),
)
MESSAGES = ("messages", "conversations")
IDS = ("id", "fname", "qid", "bill_id", "doc_id", "guid", "uid")


@dataclass(frozen=True)
class Columns:
    """The columns of one file that are used: `text` alone, or `document` and `summary`."""

    document: str | None
    summary: tuple[str, ...]
    id: str | None
    text: str | None
    guessed: tuple[str, ...] = ()  # which of these four the recipe left open

    @property
    def names(self) -> tuple[str, ...]:
        """Every column that is read."""
        all_names = (self.text, self.document, *self.summary, self.id)
        return tuple(dict.fromkeys(name for name in all_names if name))


def choose(fields: Fields, names: list[str], rows: list[dict[str, Any]]) -> tuple[Columns, bool]:
    """The recipe's columns, those it leaves open guessed from names; and whether any guess fits."""
    named = Columns(fields.document, _listed(fields.summary), fields.id, fields.text)
    if named.text or (named.document and named.summary):
        return named, True
    id_ = named.id or _guess_id(names)
    chosen = None
    if not named.document and not named.summary and _is_chat(names, rows):
        chosen = Columns(None, (), id_, "text")
    for document, summary in () if chosen else PAIRS:
        documents = named.document or _same_name(document, names)
        summaries = named.summary or _summary_columns(summary, names)
        if documents and summaries and documents not in summaries:
            chosen = Columns(documents, summaries, id_, None)
            break
    if not chosen and not named.document and not named.summary:
        column = _messages_column(names, rows)
        chosen = Columns(None, (), id_, column) if column else None
    return (replace(chosen, guessed=_guessed(chosen, named)), True) if chosen else (named, False)


def _guessed(chosen: Columns, named: Columns) -> tuple[str, ...]:
    keys = ("document", "summary", "id", "text")
    return tuple(key for key in keys if getattr(chosen, key) != getattr(named, key))


def problems_of(
    file: str, columns: Columns, fit: bool, names: list[str], prompt: Prompt
) -> list[str]:
    """Why these columns cannot be read in a file with columns `names`.

    `fit`: whether `choose` named or guessed columns for document and summary.
    """
    has = f"it has: {shown(names)}"
    by_key = {
        "data.fields.document": (columns.document,),
        "data.fields.summary": columns.summary,
        "data.fields.id": (columns.id,),
        "data.fields.text": (columns.text,),
    }
    problems = []
    for key, used in by_key.items():
        for name in used:
            if name and name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
                hint = f'; nearest: "{near[0]}"' if near else ""
                problems.append(f'{file} has no column "{name}" ({key}); {has}{hint}')
    if not problems and not fit:
        problems.append(
            f"{file}: no columns with usual names for document and summary; {has}; name them in "
            "data.fields.document and data.fields.summary, or data.fields.text"
        )
    return problems


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
    if not isinstance(value, str):
        kinds = {"NoneType": "null", "dict": "an object", "list": "a list", "bytes": "binary"}
        kind = kinds.get(type(value).__name__, "a number or truth value")
        raise ValueError(f"{where} is {kind}, not text; correct it or set data.fields.{key}")
    if not value.strip():
        raise ValueError(f"{where} is blank; fill it in or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} is not valid Unicode; save the file as UTF-8") from None
    return value.replace("\r\n", "\n")


def _id(row: dict[str, Any], columns: Columns) -> str:
    if not columns.id:
        return ""
    value = row.get(columns.id)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if "id" in columns.guessed and not (isinstance(value, str) and value.strip()):
        return ""  # the column was guessed, not named: file and line name a row without it
    return _text(row, columns.id, "id")


def _listed(summary: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (summary,) if isinstance(summary, str) else tuple(summary or ())


def _same_name(usual: str, names: list[str]) -> str | None:
    return next((name for name in names if name.lower() == usual), None)


def _summary_columns(usual: str, names: list[str]) -> tuple[str, ...]:
    single = _same_name(usual, names)
    numbered = [name for name in names if re.fullmatch(rf"{usual}_?\d+", name.lower())]
    return (single,) if single else tuple(numbered)


def _guess_id(names: list[str]) -> str | None:
    return next((name for usual in IDS if (name := _same_name(usual, names))), None)


def _is_chat(names: list[str], rows: list[dict[str, Any]]) -> bool:
    texts = [row.get("text") for row in rows]
    return "text" in names and any(isinstance(text, str) and CLOSE in text for text in texts)


def _messages_column(names: list[str], rows: list[dict[str, Any]]) -> str | None:
    candidates = [_same_name(name, names) for name in MESSAGES]
    return next((c for c in candidates if c and any(is_messages(row.get(c)) for row in rows)), None)
