"""A column's value as the names of the slices that its row is in. Nothing here refuses a row."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from decimal import Decimal
from typing import Any

from tasks.ingest.column_roles import is_nothing
from tasks.ingest.columns import Columns

LONGEST, KEPT = 60, 48  # characters of a name; of a longer text that much, and a digest
EXACT = 2**53  # below it a float's whole number is the one that was written
JOINERS = "\u200c\u200d"  # not seen, yet spelling in Persian and Indic scripts


def labels_of(row: dict[str, Any], columns: Columns) -> dict[str, tuple[str, ...]]:
    """The values of each of the row's labels that has any."""
    found = {name: values_of(row.get(column)) for name, column in columns.labels.items()}
    return {name: values for name, values in found.items() if values}


def values_of(value: Any) -> tuple[str, ...]:
    """One name, of a list one for each item (the row is in each slice), of nothing none."""
    items = value if isinstance(value, (list, tuple)) else [value]
    names = [_name(item) for item in items if not is_nothing(item)]
    return tuple(sorted({name for name in names if name}))


def _name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (float, Decimal)) and -EXACT < value < EXACT and value == int(value):
        value = int(value)  # pandas writes whole numbers as 1.0 where some rows have none
    if isinstance(value, (dict, list, tuple)):
        value = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    text = value.hex() if isinstance(value, bytes) else str(value)
    text = " ".join(unicodedata.normalize("NFC", text).split())
    text = "".join(map(_printable, text))
    if len(text) <= LONGEST:
        return text
    return f"{text[:KEPT]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _printable(character: str) -> str:
    """Escaped, what a terminal would not show or would obey: colours, writing direction, half a character."""
    if character.isprintable() or character in JOINERS:
        return character
    return character.encode("unicode_escape").decode()
