"""Rows of one input, in order, into the splits they belong to."""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from tasks.contracts.records import Row
from tasks.ingest.fields import Columns, example_of, rejected
from tasks.ingest.lengths import Lengths, Meter
from tasks.ingest.reading import read
from tasks.ingest.row_types import Example, Reject, SourceFile, normalized, source_of

BATCH_ROWS = 256  # tokenized at a time
LISTED_REJECTS = 20  # in an error's text; the rejects file has all
NOT_MEASURED = Lengths(0, 0, ())

Measured = tuple[Example, Lengths] | Reject
_ROW = TypeAdapter(Row)
_REJECT = TypeAdapter(Reject)


def row_json(row: Row) -> bytes:
    """A canonical row as one line of JSON."""
    return _ROW.dump_json(row) + b"\n"


def row_of(line: bytes) -> Row:
    """The row back from its line."""
    return _ROW.validate_json(line)


def identity(source: str, references: Sequence[str]) -> bytes:
    """16 bytes that two rows share when document and references are the same but for white space."""
    key = hashlib.blake2b(digest_size=16)
    for text in (source, *references):
        key.update(normalized(text).encode() + b"\0")
    return key.digest()


@dataclass
class Tally:
    """What was read of one input."""

    read: int = 0
    rejected: int = 0
    by_file: dict[str, int] = field(default_factory=dict)
    first_rejects: list[Reject] = field(default_factory=list)


class Side:
    """A split while it is written: one line a distinct row, and its lengths in the same order."""

    def __init__(self, path: Path, most: int | None) -> None:
        self.path, self.most = path, most
        self.used = 0  # good rows, duplicates included: what `most` counts
        self.duplicates = 0
        self.prompts, self.cuts = array("L"), array("L")
        self.summaries, self.references = array("L"), array("L")  # flat; how many a row has
        self._seen: set[bytes] = set()
        self._ids: dict[str, int] = {}  # how often each name was asked for
        self._file = path.open("wb")

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """No more rows; the file can be read until the side's `with` block ends."""
        self._file.close()

    @property
    def full(self) -> bool:
        """Whether it has all the rows that the recipe asks for."""
        return self.most is not None and self.used >= self.most

    @property
    def rows(self) -> int:
        """Distinct rows written."""
        return len(self.prompts)

    def add(self, example: Example, source: str, lengths: Lengths) -> None:
        """Write a row, unless the same document and references were there before."""
        self.used += 1
        key = identity(source, example.references)
        if key in self._seen:
            self.duplicates += 1
            return
        self._seen.add(key)
        id_ = self._unique(example.id or f"{Path(example.file).stem}:{example.line}")
        self._file.write(row_json(Row(id_, source, example.document, example.references)))
        self.prompts.append(lengths.prompt)
        self.cuts.append(lengths.cut)
        self.summaries.extend(lengths.summaries)
        self.references.append(len(lengths.summaries))

    def _unique(self, id_: str) -> str:
        unique, count = id_, self._ids.get(id_, 0)
        while unique in self._ids:
            count += 1
            unique = f"{id_}~{count}"
        self._ids[id_] = max(count, 1)
        self._ids.setdefault(unique, 1)
        return unique


def measured(
    files: Iterable[tuple[SourceFile, Columns]], meter: Meter | None
) -> Iterator[Measured]:
    """Every row of the files: an example with its lengths, or a reject, in the order read."""
    items = (
        example_of(raw, file.name, columns)
        for file, columns in files
        for raw in read(file, columns.names)
    )
    while batch := list(itertools.islice(items, BATCH_ROWS)):
        examples = [item for item in batch if isinstance(item, Example)]
        found = iter(meter.measure(examples) if meter else [NOT_MEASURED] * len(examples))
        for item in batch:
            yield item if isinstance(item, Reject) else _with(item, next(found))


def _with(example: Example, lengths: Lengths | str) -> Measured:
    if isinstance(lengths, Lengths):
        return example, lengths
    shown = {"document": example.document, "references": example.references}
    return rejected(example.file, example.line, lengths, shown)


def collect(
    items: Iterable[Measured],
    side_of: Callable[[str], Side],
    sides: tuple[Side, ...],
    rejects: Callable[[bytes], object],
) -> Tally:
    """Put each usable row on the side that `side_of` its source says, until all sides are full.

    Rows of a full side are passed over. Rejects go to `rejects` as lines of JSON.
    """
    tally = Tally()
    for item in items:
        tally.read += 1
        if isinstance(item, Reject):
            tally.rejected += 1
            rejects(_REJECT.dump_json(item) + b"\n")
            if len(tally.first_rejects) < LISTED_REJECTS:
                tally.first_rejects.append(item)
            file = item.file
        else:
            example, lengths = item
            file = example.file
            source = source_of(example.document)
            side = side_of(source)
            if not side.full:
                side.add(example, source, lengths)
        tally.by_file[file] = tally.by_file.get(file, 0) + 1
        if all(side.full for side in sides):
            break
    return tally


def in_evaluation(source: str, share: float) -> bool:
    """Whether a document is held out: its name, a hash, read as a number in [0, 1), says so.

    So a document never moves when others come, and never stands on both sides.
    """
    return int(source, 16) < share * 2**64
