"""Rows copied without those whose document is, or nearly is, a document that others hold."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.contracts.comparable_text import comparable_words
from tasks.contracts.documents import plain_text
from tasks.contracts.records import Row
from tasks.contracts.similar_documents import DocumentIndex
from tasks.ingest.canonical_rows import read_lines

OVERLAP_EXAMPLES = 5
LEAST_REFERENCE_WORDS = 8


@dataclass
class Overlap:
    """Training rows dropped because their document is, or is like, an evaluation document."""

    evaluation_documents: int
    train_documents: int = 0  # distinct ones that stayed
    exact: int = 0
    # By Match.kind: similar, holds (an evaluation document), part (of one).
    near: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)
    # Rows that stayed with another document but an evaluation row's reference.
    shared_references: int = 0
    # Of each training row, whether it stayed.
    kept: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @property
    def dropped(self) -> int:
        """All rows that were dropped."""
        return self.exact + self.near.total()


def drop_overlap(index: DocumentIndex, evaluation: Path, train: Path, out: Path) -> Overlap:
    """Copy the training rows to `out`, without those about documents of the evaluation rows."""
    references: set[bytes] = set()
    for _, row in read_lines(evaluation):
        index.add(row.source, row.id, plain_text(row.document))
        references.update(_long_references(row))
    overlap = Overlap(evaluation_documents=len(index))
    kept = bytearray()
    documents = array("Q")  # numbers, not texts: there may be millions
    with out.open("wb") as out_file:
        for line, row in read_lines(train):
            dropped = _counted_as_overlap(index, row, overlap)
            kept.append(not dropped)
            if not dropped:
                overlap.shared_references += not references.isdisjoint(_long_references(row))
                documents.append(int(row.source, 16))
                out_file.write(line)
    overlap.kept = np.frombuffer(kept, dtype=bool)
    overlap.train_documents = len(np.unique(np.array(documents, dtype=np.uint64)))
    return overlap


def _long_references(row: Row) -> Iterator[bytes]:
    """The row's references as they are compared; short ones ("Yes.") are many rows'."""
    for reference in row.references:
        words = comparable_words(reference)
        if len(words) >= LEAST_REFERENCE_WORDS:
            yield hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()


def _counted_as_overlap(index: DocumentIndex, row: Row, overlap: Overlap) -> bool:
    exact_id = index.exact(row.source)
    near = None if exact_id else index.near(plain_text(row.document))
    if not exact_id and not near:
        return False
    overlap.exact += bool(exact_id)
    if near:
        overlap.near[near.kind] += 1
    if len(overlap.examples) < OVERLAP_EXAMPLES:
        match = {"evaluation": exact_id, "jaccard": 1.0, "kind": "exact"}
        if near:
            match = {
                "evaluation": near.id,
                "jaccard": round(near.jaccard, 4),
                "of_evaluation": round(near.of_evaluation, 4),
                "of_training": round(near.of_training, 4),
                "kind": near.kind,
            }
        overlap.examples.append({"train": row.id, **match, "exact": bool(exact_id)})
    return True


def drop_seen(
    rows: Path, seen: Sequence[Path], index: DocumentIndex, out: Path
) -> tuple[int, dict[str, int]]:
    """Copy the rows to `out`, without those about documents of the files `seen`, or like them.

    `index`: an empty one. Returns how many rows stayed, and how many were dropped (`exact_dropped`,
    `near_dropped`).
    """
    for path in seen:
        for _, row in read_lines(path):
            index.add(row.source, row.id, plain_text(row.document))
    fresh_rows, exact, near = 0, 0, 0
    with out.open("wb") as out_file:
        for line, row in read_lines(rows):
            if index.exact(row.source):
                exact += 1
            elif index.near(plain_text(row.document)):
                near += 1
            else:
                fresh_rows += 1
                out_file.write(line)
    return fresh_rows, {"exact_dropped": exact, "near_dropped": near}
