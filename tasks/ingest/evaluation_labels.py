"""The labels of the evaluation rows while they are written, and what is wrong or odd about them.

`source` is a column of that name if a deciding row fills it, else the file. That is known when all rows
were read, so both are kept until then.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tasks.contracts.slice_labels import (
    LANGUAGE,
    LENGTH,
    MIN_DOCUMENTS,
    NO_VALUE,
    SOURCE,
    Labels,
    column_of,
    labelled,
)
from tasks.ingest.label_values import values_of
from tasks.ingest.row_types import Example, shown

NEAR = 0.4  # of difflib, as for the columns of data.fields


@dataclass(frozen=True, slots=True)
class _Labelled:
    id: str
    source: str  # of its document
    is_open: bool
    file: str
    found: Mapping[str, tuple[str, ...]]


class EvaluationLabels:
    """Labels by gate.slices; without a name among them that needs one, nothing is kept."""

    def __init__(self, slices: Sequence[str], open_prefix: str) -> None:
        self.names, self.open_prefix = labelled(slices), open_prefix
        self._rows: dict[bytes, _Labelled] = {}  # by identity
        self._duplicates: list[tuple[bytes, Example]] = []

    def add(self, key: bytes, id_: str, source: str, example: Example, id_prefix: str) -> None:
        """A row that was written. `key`: its identity; `id_prefix`: of its part."""
        if self.names:
            is_open = id_prefix == self.open_prefix
            self._rows[key] = _Labelled(id_, source, is_open, example.file, example.labels)

    def add_duplicate(self, key: bytes, example: Example) -> None:
        """A row that was dropped, being equal to one that was written."""
        kept = self._rows.get(key)
        if kept and (kept.file, kept.found) != (example.file, example.labels):
            self._duplicates.append((key, example))

    def labels(self) -> Labels:
        """The values of every row written, in the order written."""
        by_file = self._by_file(row.file for row in self._rows.values())
        return {
            name: {
                row.id: _values(name, row.file, row.found, by_file) for row in self._rows.values()
            }
            for name in self.names
        }

    def _by_file(self, files: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """What SOURCE is by file; empty where a column says it."""
        if self._fills(SOURCE):
            return {}
        return {file: values_of(tail) for file, tail in shortest_tails(files).items()}

    def _fills(self, name: str) -> bool:
        """Whether any deciding row has a value."""
        return any(name in row.found for row in self._deciding)

    @property
    def _deciding(self) -> Iterable[_Labelled]:
        return (row for row in self._rows.values() if not row.is_open)

    def problems(self, columns: Sequence[str]) -> list[str]:
        """Names that no deciding row has a value of. `columns`: those that evaluation rows have."""
        if not any(True for _ in self._deciding):
            return []
        return [
            _missing(name, columns)
            for name in self.names
            if name != SOURCE and not self._fills(name)
        ]

    def remarks(self) -> list[str]:
        """What a reader should know before anything is spent, a line each."""
        return [
            line for name, values in self.labels().items() for line in self._remarks(name, values)
        ]

    def _remarks(self, name: str, values: Mapping[str, tuple[str, ...]]) -> list[str]:
        documents: dict[str, set[str]] = {}
        for row in self._deciding:
            for value in values[row.id]:
                documents.setdefault(value, set()).add(row.source)
        counts = Counter({value: len(of) for value, of in documents.items()})
        [(value, most)] = counts.most_common(1)
        lines = []
        if most < MIN_DOCUMENTS:
            lines.append(
                f"gate.slices: no {name} has {MIN_DOCUMENTS} evaluation documents (the most: "
                f'"{value}", {most}), so no slice of it can be judged'
            )
        elif len(counts) == 1:
            lines.append(
                f'gate.slices: every deciding row has the same {name}, "{value}": one slice'
            )
        opened = [row for row in self._rows.values() if row.is_open]
        blank = sum(values[row.id] == (NO_VALUE,) for row in opened)
        if blank:
            lines.append(
                f"gate.slices: {blank} of {len(opened)} rows of data.open_evaluation have no {name}; "
                f"they are in the slice {NO_VALUE}"
            )
        return [*lines, *self._other_labels(name)]

    def _other_labels(self, name: str) -> list[str]:
        pairs = [(self._rows[key], example) for key, example in self._duplicates]
        by_file = self._by_file(row.file for pair in pairs for row in pair)
        other = sum(
            _values(name, kept.file, kept.found, by_file)
            != _values(name, example.file, example.labels, by_file)
            for kept, example in pairs
        )
        if not other:
            return []
        return [
            f"gate.slices: {other} evaluation rows were dropped as duplicates though their {name} is another "
            "than that of the row that stayed, which keeps its own"
        ]


def _values(
    name: str,
    file: str,
    found: Mapping[str, tuple[str, ...]],
    by_file: Mapping[str, tuple[str, ...]],
) -> tuple[str, ...]:
    if name == SOURCE and by_file:
        return by_file[file]
    return found.get(name, (NO_VALUE,))


def _missing(name: str, columns: Sequence[str]) -> str:
    column = column_of(name)
    if column in columns:
        return (
            f'gate.slices: "{column}" is blank in every deciding row; fill it in, or leave it out'
        )
    names = [*columns, LENGTH, LANGUAGE, SOURCE]
    near = difflib.get_close_matches(column, names, n=1, cutoff=NEAR)
    hint = f'nearest: "{near[0]}"; ' if near else ""
    return (
        f'gate.slices: no deciding row has a column "{column}"; {hint}evaluation rows have: '
        f"{shown(list(columns))}; {LENGTH}, {LANGUAGE} and {SOURCE} need no column"
    )


def shortest_tails(files: Iterable[str]) -> dict[str, str]:
    """Each file by the last parts of its path, as few as tell it from the others."""
    parts = {file: PurePosixPath(file).parts for file in dict.fromkeys(files)}
    taken = Counter(tail for of in parts.values() for tail in _tails(of))
    return {
        file: str(PurePosixPath(*next((tail for tail in _tails(of) if taken[tail] == 1), of)))
        for file, of in parts.items()
    }


def _tails(parts: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [parts[-count:] for count in range(1, len(parts) + 1)]
