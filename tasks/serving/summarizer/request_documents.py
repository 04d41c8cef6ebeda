"""What a served model is given (a DataFrame, lists, dicts), as the documents of its prompts.

Columns are taken by name and texts cleaned as rows are when they are ingested. Nothing is guessed: what is
no document is an error that names its row, and never shows another one's text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .clean import clean, fault_of, is_null
from .settings import Document, Message, SummarizerSettings
from .template import DOCUMENT

MESSAGES = "messages"  # the column of conversations, as other servers call it
LISTED_FAULTS = 20
# What the prompt has no place for and what changes the answer: training rejects it too.
TOOLS = ("tools", "functions")
UNREAD = ("tool_calls", "tool_call_id", "function_call", "name", "images", "audio")


def documents_of(model_input: Any, settings: SummarizerSettings) -> list[Document]:
    """The documents of a request, in its order.

    A DataFrame, a dict (of texts, or of columns), a list of dicts, or a list of texts where the prompt takes
    one text; a conversation is a list of messages. Several texts go by the names in the prompt or by those
    of the training data; one document by its column's name there, or "document". Raises ValueError with
    every row that cannot be used, rows counted from 1.
    """
    rows = _rows(model_input, settings)
    column = None if settings.inputs else _document_column(rows, settings)
    documents: list[Document] = []
    faults = []
    for number, row in enumerate(rows, 1):
        try:
            documents.append(
                _texts(row, settings) if settings.inputs else _document(row, column, settings)
            )
        except ValueError as error:
            faults.append(f"row {number}: {error}")
    if faults:
        more = f"; and {len(faults) - LISTED_FAULTS} more" if len(faults) > LISTED_FAULTS else ""
        raise ValueError(
            f"{len(faults)} of {len(rows)} rows cannot be used: "
            f"{'; '.join(faults[:LISTED_FAULTS])}{more}"
        )
    return documents


def _rows(model_input: Any, settings: SummarizerSettings) -> list[Any]:
    if hasattr(model_input, "columns") and hasattr(model_input, "to_dict"):
        names = list(model_input.columns)
        if repeated := sorted({str(name) for name in names if names.count(name) > 1}):
            raise ValueError(f"several columns are named {', '.join(repeated)}; rename them")
        if not names:  # MLflow leaves out the columns that its signature lacks
            wanted = ", ".join(settings.inputs) or " or ".join(_known_columns(settings))
            raise ValueError(
                f"there is no column {wanted}, and no text: give the texts by name"
                f"{'' if settings.inputs else ', or as a list of texts'}"
            )
        return _unpacked(model_input.to_dict(orient="records"))
    if isinstance(model_input, dict):
        if settings.format == "chat" and list(model_input) == [MESSAGES]:
            messages = _plain(model_input[MESSAGES])
            return messages if _holds_conversations(messages) else [messages]
        return _unpacked([{name: _plain(value) for name, value in model_input.items()}])
    rows = _plain(model_input)
    if not isinstance(rows, (list, tuple)):
        return [rows]
    if settings.format == "chat" and rows and all(map(_is_message, rows)):
        return [list(rows)]
    return [_plain(row) for row in rows]


def _plain(value: Any) -> Any:
    """Arrays and Series (also of one number of dimensions less) as lists or single values."""
    return value.tolist() if hasattr(value, "tolist") else value


def _unpacked(records: list[dict[Any, Any]]) -> list[Any]:
    """A dict of columns is one record whose values are lists: it is many rows."""
    if len(records) != 1 or not records[0]:
        return list(records)
    values = {name: _plain(value) for name, value in records[0].items()}
    columns = [v for v in values.values() if isinstance(v, (list, tuple)) and not _is_talk(v)]
    if len(columns) < len(values):
        return [values]
    lengths = sorted({len(column) for column in columns})
    if len(lengths) > 1:
        raise ValueError(f"columns have {' and '.join(map(str, lengths))} rows; give all the same")
    return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= value.keys()


def _is_talk(value: Sequence[Any]) -> bool:
    return bool(value) and all(map(_is_message, value))


def _holds_conversations(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(item, (list, tuple)) for item in value
    )


def _known_columns(settings: SummarizerSettings) -> list[str]:
    """What the document's column may be called."""
    of_chat = [MESSAGES] if settings.format == "chat" else []
    return list(dict.fromkeys([*settings.columns[:1], DOCUMENT, *of_chat]))


def _document_column(rows: Iterable[Any], settings: SummarizerSettings) -> Any:
    """The column of the document: by its name, or the only one. None: rows are not dicts."""
    names = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
    if not names:
        return None
    known = _known_columns(settings)
    found = next((name for name in known if name in names), None)
    if found is not None or len(names) == 1:
        return names[0] if found is None else found
    listed = ", ".join(map(str, names))
    raise ValueError(
        f"none of the columns {listed} is {' or '.join(known)}: name the column of the "
        "document so, or give a list of texts"
    )


def _document(row: Any, column: Any, settings: SummarizerSettings) -> Document:
    where = f"{column if isinstance(column, str) else 'document'} "
    if isinstance(row, dict):
        if settings.format == "chat":
            _refuse(row, TOOLS, "")
        row = _plain(row.get(column))
    if settings.format == "chat" and isinstance(row, (list, tuple)):
        return [_message(item, number) for number, item in enumerate(row, 1)]
    return _text(row, where)


def _message(item: Any, number: int) -> Message:
    if not _is_message(item) or not isinstance(item["role"], str):
        raise ValueError(f"message {number} has no role and content")
    _refuse(item, UNREAD, f"message {number} ")
    return {**item, "content": _text(item["content"], f"message {number} ")}


def _refuse(given: dict[Any, Any], names: Iterable[str], where: str) -> None:
    """Raise ValueError where one of these is there and not empty: it would be left out silently."""
    for name in names:
        value = _plain(given.get(name))
        if not is_null(value) and value not in ("", [], {}):
            raise ValueError(f"{where}has {name}, which this model does not read; remove it")


def _texts(row: Any, settings: SummarizerSettings) -> dict[str, str]:
    """The inputs of a row by their names in the prompt."""
    if isinstance(row, str) and len(settings.inputs) == 1:
        row = {settings.inputs[0]: row}
    if not isinstance(row, dict):
        names = ", ".join(settings.inputs)
        raise ValueError(f"give the texts by name ({names}), as a dict or in columns")
    texts: dict[str, str] = {}
    faults: list[str] = []
    for name, column in zip(settings.inputs, settings.columns or settings.inputs, strict=True):
        key = name if name in row else column
        value: Any = row.get(key)
        is_blank = is_null(value) or (isinstance(value, str) and not value.strip())
        if name in settings.optional and is_blank:
            texts[name] = ""
        elif key not in row:
            faults.append(f"{name} is missing")
        else:
            try:
                texts[name] = _text(value, f"{name} ")
            except ValueError as error:
                faults.append(str(error))
    if not faults and not any(texts.values()):
        faults.append(f"all of {', '.join(settings.inputs)} are blank")
    if faults:
        raise ValueError(", ".join(faults))
    return texts


def _text(value: Any, where: str) -> str:
    if fault := fault_of(value):
        raise ValueError(f"{where}{fault}")
    return clean(value)
