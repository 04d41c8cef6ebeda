"""Which column of a file is what: named by the recipe, or guessed from names and the first rows.

Over 250 lines: the guesses take turns, and each leaves its traces in one record.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from types import NoneType
from typing import Any

from tasks.contracts.recipe import Fields, Prompt
from tasks.contracts.slice_labels import SOURCE, column_of, labelled
from tasks.ingest.chat import CLOSE, mostly_chat_texts
from tasks.ingest.column_roles import holds_nothing, role_of
from tasks.ingest.messages import ends_in_question, is_messages, may_be_messages, unused_keys

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
    ("question", "answers"),
    ("question", "response"),
    ("document", "target"),
    ("source", "target"),
    ("input", "output"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
)
# Of rows with inputs, whose documents the recipe names.
SUMMARIES = tuple(dict.fromkeys(summary for _, summary in PAIRS))
MESSAGES = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue", "turns")
SYSTEM = ("system", "system_prompt", "system_message")
IDS = ("id", "fname", "qid", "bill_id", "doc_id", "guid", "uid")


@dataclass(frozen=True)
class Columns:
    """The columns of one file: `text` alone, or `summary` with `document` or `inputs`."""

    document: str | None
    summary: tuple[str, ...]
    id: str | None
    text: str | None
    guessed: tuple[str, ...] = ()  # which of these and `system` the recipe left open
    system: str | None = None
    inputs: dict[str, str] = field(default_factory=dict)  # a name in the prompt: its column
    optional: tuple[str, ...] = ()  # names of `inputs` that may be blank
    ignored: tuple[str, ...] = ()  # by the recipe: columns, and keys of messages
    labels: dict[str, str] = field(default_factory=dict)  # a name of gate.slices: its column
    unused: tuple[str, ...] = ()  # by nobody's word
    # Of the unused: blank in all sampled rows, though their names promise content.
    blank: tuple[str, ...] = ()
    sampled: frozenset[str] = frozenset()  # every column of the first rows
    notes: tuple[str, ...] = ()  # what a reader should know of the choice
    # Filled while rows are read: harmless columns that the first rows lack, unused like `unused`.
    late: set[str] = field(default_factory=set, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Every column that is read."""
        named = (self.text, self.document, *self.inputs.values(), *self.summary)
        used = (*named, self.id, self.system)
        return tuple(dict.fromkeys(name for name in (*used, *self.blank) if name))

    @property
    def read(self) -> tuple[str, ...]:
        """What is asked of a table: also labels, which it may lack."""
        there = (column for column in self.labels.values() if column in self.sampled)
        return tuple(dict.fromkeys((*self.names, *there)))

    @property
    def only_labels(self) -> tuple[str, ...]:
        """Columns of the first rows that are labels, and otherwise as good as unused."""
        used = {*self.names, *self.ignored}
        return tuple(name for name in self.read if name not in used)

    def as_reported(self) -> dict[str, Any]:
        """For the data report."""
        values = asdict(self)
        del values["sampled"], values["late"]
        return values | {"unused": [*self.unused, *sorted(self.late)], "uses": self.in_words}

    @property
    def in_words(self) -> str:
        """What each used column is, and which of them were guessed."""
        uses = {
            "document": quoted([self.document] if self.document else []),
            "text": quoted([self.text] if self.text else []),
            "summary": quoted(self.summary),
            "id": quoted([self.id] if self.id else []),
            "system": quoted([self.system] if self.system else []),
        }
        inputs = [f'{name} is "{column}"' for name, column in self.inputs.items()]
        found = [
            f"{use} is {columns}" + (" (guessed)" if use in self.guessed else "")
            for use, columns in uses.items()
            if columns
        ]
        there = [column for column in self.labels.values() if column in self.sampled]
        labels = [f"label is {quoted(there)}"] if there else []
        return ", ".join(inputs + found + labels)


def choose(
    fields: Fields,
    names: list[str],
    rows: list[dict[str, Any]],
    prompt: Prompt,
    slices: Sequence[str] = (),
) -> tuple[Columns, bool]:
    """The recipe's columns, those it leaves open guessed from names; and whether any guess fits.

    `slices`: of the recipe's gate. They change nothing of what is the document or a reference.
    """
    columns, fit = _chosen(fields, names, rows)
    if prompt.format == "chat":
        columns = _with_system(columns, fields, names, rows)
    labels = _labels(columns, slices)
    known = {*columns.names, *fields.ignore, *labels.values()}
    unused = [name for name in names if name not in known]
    blank = [name for name in unused if role_of(name) and holds_nothing(rows, name)]
    return replace(
        columns,
        ignored=fields.ignore,
        labels=labels,
        notes=(*columns.notes, *_absent(columns, names), *_message_notes(columns, rows)),
        unused=tuple(unused),
        blank=tuple(blank),
        sampled=frozenset(names),
    ), fit


def _labels(columns: Columns, slices: Sequence[str]) -> dict[str, str]:
    labels = {name: column_of(name) for name in labelled(slices)}
    texts = {columns.document, columns.text, *columns.inputs.values(), *columns.summary}
    if SOURCE in texts:  # pairs of source and target call their documents so: the file is it then
        labels.pop(SOURCE, None)
    return labels


def _absent(columns: Columns, names: list[str]) -> list[str]:
    return [
        f'no column "{columns.inputs[name]}" in the first rows: {name} is blank there'
        for name in columns.optional
        if columns.inputs.get(name) and columns.inputs[name] not in names
    ]


def _chosen(fields: Fields, names: list[str], rows: list[dict[str, Any]]) -> tuple[Columns, bool]:
    named = Columns(
        fields.document,
        _listed(fields.summary),
        fields.id,
        fields.text,
        inputs=fields.inputs or {},
        optional=fields.optional,
    )
    if named.text or ((named.document or named.inputs) and named.summary):
        return named, True
    free = [name for name in names if name not in fields.ignore]
    id_ = named.id or _guess_id(free)
    chosen: Columns | None = None
    notes: tuple[str, ...] = ()
    if not named.document and not named.summary and not named.inputs:
        chosen, notes = _chat_column(free, rows, id_)
    for document, summary in () if chosen else _pairs(named):
        documents = named.document or _same_name(document, free)
        summaries = named.summary or _summary_columns(summary, free)
        taken = {documents, *named.inputs.values()}
        if (documents or named.inputs) and summaries and not taken & set(summaries):
            chosen = replace(named, document=documents, summary=summaries, id=id_, notes=notes)
            break
    if not chosen and not named.document and not named.summary and not named.inputs:
        chosen = _messages_columns(free, rows, id_)
    if chosen is None:
        return replace(named, notes=notes), False
    return replace(chosen, guessed=_guessed(chosen, named)), True


def _pairs(named: Columns) -> Sequence[tuple[str, str]]:
    return [("", summary) for summary in SUMMARIES] if named.inputs else PAIRS


def _guessed(chosen: Columns, named: Columns) -> tuple[str, ...]:
    keys = ("document", "summary", "id", "text")
    return tuple(key for key in keys if getattr(chosen, key) != getattr(named, key))


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


def _chat_column(
    names: list[str], rows: list[dict[str, Any]], id_: str | None
) -> tuple[Columns | None, tuple[str, ...]]:
    """The column `text` as conversations, where most of its texts are; and what else was seen."""
    values = [row.get("text") for row in rows] if "text" in names else []
    if mostly_chat_texts(values):
        return Columns(None, (), id_, "text"), ()
    texts = [text for text in values if isinstance(text, str) and text.strip()]
    marked = sum(CLOSE in text for text in texts)
    note = f'"text" holds {CLOSE} in {marked} of its first {len(texts)} rows, and is read as plain text'
    return None, (note,) if marked else ()


def _messages_columns(
    names: list[str], rows: list[dict[str, Any]], id_: str | None
) -> Columns | None:
    """A column of conversations; where most end in a question, with the one column that may answer it."""
    column = _messages_column(names, rows)
    if column is None:
        return None
    answers = [name for name in names if role_of(name) == "reference" and name != column]
    open_ended = sum(ends_in_question(row.get(column)) for row in rows)
    if len(answers) == 1 and 2 * open_ended > len(rows):
        return Columns(column, (answers[0],), id_, None)
    return Columns(None, (), id_, column)


def _with_system(
    columns: Columns, fields: Fields, names: list[str], rows: list[dict[str, Any]]
) -> Columns:
    """The columns with that of system messages: named, or a column of texts with a usual name."""
    if fields.system:
        return replace(columns, system=fields.system)
    free = [name for name in names if name not in {*columns.names, *fields.ignore}]
    usual = [name for system in SYSTEM if (name := _same_name(system, free))]
    texts = [
        name
        for name in usual
        if all(isinstance(row.get(name), (str, NoneType)) for row in rows)
        and not holds_nothing(rows, name)
    ]
    if len(texts) != 1 or columns.inputs:  # of two the recipe must choose: nothing uses the other
        return columns
    return replace(columns, system=texts[0], guessed=(*columns.guessed, "system"))


def _message_notes(columns: Columns, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """What the messages of the first rows hold that is not used."""
    names = [name for name in (columns.text, columns.document, *columns.summary) if name]
    keys = unused_keys(row.get(name) for name in names for row in rows)
    return (f"messages also hold {quoted(keys)}, which nothing uses",) if keys else ()


def quoted(names: Sequence[str]) -> str:
    """Names as a message shows them."""
    return ", ".join(f'"{name}"' for name in names)


def _messages_column(names: list[str], rows: list[dict[str, Any]]) -> str | None:
    candidates = [_same_name(name, names) for name in MESSAGES]
    for fits in (is_messages, may_be_messages):
        for name in candidates:
            if name and any(fits(row.get(name)) for row in rows):
                return name
    return None
