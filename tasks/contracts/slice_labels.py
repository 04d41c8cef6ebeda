"""Labels of evaluation rows, by which the gate slices them: what ingest writes and the gate reads.

`length` and `language` are told from a row's document and need no label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter

LABELS = "labels.json"  # beside evaluation.jsonl
LENGTH, LANGUAGE, SOURCE = "length", "language", "source"
COLUMN = "column:"  # before a column's name that is one of these
NO_VALUE = "(none)"
MIN_DOCUMENTS = 20  # of a slice; under it no bound can be trusted

# A name of gate.slices: a row's id: the values whose slices it is in, one or more.
Labels = Mapping[str, Mapping[str, tuple[str, ...]]]
_LABELS = TypeAdapter(dict[str, dict[str, tuple[str, ...]]])


def labelled(slices: Sequence[str]) -> tuple[str, ...]:
    """Those of gate.slices that need a label of each row, each once."""
    return tuple(dict.fromkeys(name for name in slices if name not in (LENGTH, LANGUAGE)))


def column_of(name: str) -> str:
    """The column that a name of gate.slices means."""
    return name.removeprefix(COLUMN)


def write_labels(path: Path, labels: Labels) -> None:
    """Write the file that `read_labels` reads."""
    path.write_bytes(_LABELS.dump_json({by: dict(rows) for by, rows in labels.items()}, indent=1))


def read_labels(path: Path) -> Labels:
    """Labels from their file. Raises pydantic's ValidationError for another content."""
    return _LABELS.validate_json(path.read_bytes())
