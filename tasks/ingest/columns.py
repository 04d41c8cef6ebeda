"""Which column of a file is what: named by the recipe, or guessed from names and the first rows."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any

from tasks.contracts.recipe import Fields, Prompt
from tasks.ingest.chat import mostly_chat_texts
from tasks.ingest.messages import is_messages
from tasks.ingest.row_types import shown

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
    return "text" in names and mostly_chat_texts(row.get("text") for row in rows)


def _messages_column(names: list[str], rows: list[dict[str, Any]]) -> str | None:
    candidates = [_same_name(name, names) for name in MESSAGES]
    return next((c for c in candidates if c and any(is_messages(row.get(c)) for row in rows)), None)
