"""Splits while they are written: each usable row goes, in order, into the split it belongs to."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from tasks.contracts.documents import plain_text
from tasks.contracts.recipe import Prompt
from tasks.contracts.records import Row
from tasks.ingest.canonical_rows import identity, row_json
from tasks.ingest.columns import Columns
from tasks.ingest.evaluation_labels import EvaluationLabels
from tasks.ingest.fields import example_of, rejected
from tasks.ingest.groups import Groups
from tasks.ingest.lengths import Lengths, Meter
from tasks.ingest.placeholder_texts import placeholders
from tasks.ingest.reading import read
from tasks.ingest.row_types import Example, Reject, SourceFile, source_of
from tasks.ingest.split_facts import SplitFacts

BATCH_ROWS = 256  # tokenized at a time
UNMEASURED = Lengths(0, 0, ())

MeasuredRow = tuple[Example, Lengths] | Reject
_REJECT = TypeAdapter(Reject)


@dataclass
class Tally:
    """What was read of one input."""

    read: int = 0
    rejected: int = 0
    by_file: dict[str, int] = field(default_factory=dict)
    rejects: Groups = field(default_factory=Groups)
    placeholders: Groups = field(default_factory=Groups)
    rows_missing_references: int = 0  # used rows with some of their references null
    missing_references: int = 0


class SplitWriter:
    """Writes one split: a line a distinct row, and keeps the rows' lengths in the same order."""

    def __init__(
        self, path: Path, max_rows: int | None, labels: EvaluationLabels | None = None
    ) -> None:
        self.path, self.max_rows, self.labels = path, max_rows, labels
        self.used_rows = 0  # good rows, duplicates included: what `max_rows` limits
        self.duplicates = 0
        self.facts = SplitFacts()
        self.id_prefix = ""
        # In tokens; summaries of all rows one after the other, `references` of which are a row's.
        self.prompts, self.cuts = array("L"), array("L")
        self.summaries, self.references = array("L"), array("L")
        self._written: set[bytes] = set()
        self._ids: dict[str, int] = {}  # how often each id was met
        self._file = path.open("wb")

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """End writing; the file can be read until the `with` block ends."""
        self._file.close()

    def begin_part(self, id_prefix: str, max_rows: int | None) -> None:
        """The next rows are another part: ids that begin so, and `max_rows` counted from here."""
        self.id_prefix, self.max_rows, self.used_rows = id_prefix, max_rows, 0

    @property
    def full(self) -> bool:
        """Whether it has all the rows that the recipe asks for."""
        return self.max_rows is not None and self.used_rows >= self.max_rows

    @property
    def rows(self) -> int:
        """Distinct rows written."""
        return len(self.prompts)

    def add(self, example: Example, source: str, lengths: Lengths) -> None:
        """Write a row, unless one with the same document and references was written before."""
        self.used_rows += 1
        key = identity(source, example.document, example.references)
        if key in self._written:
            self.duplicates += 1
            if self.labels:
                self.labels.add_duplicate(key, example)
            return
        self._written.add(key)
        own_id = example.id or f"{Path(example.file).stem}:{example.line}"
        id_ = self._unique(f"{self.id_prefix}{own_id}")
        self._file.write(row_json(Row(id_, source, example.document, example.references)))
        self.facts.add(example)
        if self.labels:
            self.labels.add(key, id_, source, example, self.id_prefix)
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
    files: Iterable[tuple[SourceFile, Columns]], prompt: Prompt, meter: Meter | None
) -> Iterator[MeasuredRow]:
    """Every row of the files: an example with its lengths, or a reject, in the order read."""
    items = (
        example_of(raw, file.name, columns, prompt)
        for file, columns in files
        for raw in read(file, columns.read)
    )
    while batch := list(itertools.islice(items, BATCH_ROWS)):
        examples = [item for item in batch if isinstance(item, Example)]
        measurements = iter(meter.measure(examples) if meter else [UNMEASURED] * len(examples))
        for item in batch:
            yield item if isinstance(item, Reject) else _measured_row(item, next(measurements))


def _measured_row(example: Example, lengths_or_problem: Lengths | str) -> MeasuredRow:
    if isinstance(lengths_or_problem, Lengths):
        return example, lengths_or_problem
    row = {"document": example.document, "references": example.references}
    return rejected(example.file, example.line, lengths_or_problem, row)


def write_splits(
    items: Iterable[MeasuredRow],
    split_of: Callable[[str], SplitWriter],
    splits: tuple[SplitWriter, ...],
    write_reject: Callable[[bytes], object],
) -> Tally:
    """Write each usable row to the split that `split_of` its source gives, until all are full.

    Rows of a full split are skipped. Rejects go to `write_reject` as lines of JSON.
    """
    tally = Tally()
    for item in items:
        tally.read += 1
        if isinstance(item, Reject):
            tally.rejected += 1
            write_reject(_REJECT.dump_json(item) + b"\n")
            tally.rejects.add(item.problem, str(item))
            file = item.file
        else:
            example, lengths = item
            file = example.file
            for problem in placeholders(example):
                tally.placeholders.add(problem, f"{file}:{example.line} {problem}")
            tally.missing_references += example.missing_references
            tally.rows_missing_references += example.missing_references > 0
            source = source_of(plain_text(example.document))
            split = split_of(source)
            if not split.full:
                split.add(example, source, lengths)
        tally.by_file[file] = tally.by_file.get(file, 0) + 1
        if all(split.full for split in splits):
            break
    return tally


def in_evaluation(source: str, share: float) -> bool:
    """Whether a document is held out for evaluation: its hash, as a number in [0, 1), is below `share`.

    So a document never changes its split when others come, and is never in both.
    """
    return int(source, 16) < share * 2**64
