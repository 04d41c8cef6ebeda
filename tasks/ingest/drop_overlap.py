"""Rows copied without those whose document is, or nearly is, a document that others hold."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.contracts.documents import plain_text
from tasks.contracts.records import Row
from tasks.ingest.canonical_rows import read_lines
from tasks.ingest.overlap import OverlapIndex

OVERLAP_EXAMPLES = 5


@dataclass
class Overlap:
    """Training rows dropped because their document is, or nearly is, an evaluation document."""

    evaluation_documents: int
    train_documents: int = 0  # distinct ones that stayed
    exact: int = 0
    near: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    # Of each training row, whether it stayed.
    kept: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))


def drop_overlap(index: OverlapIndex, evaluation: Path, train: Path, out: Path) -> Overlap:
    """Copy the training rows to `out`, without those about documents of the evaluation rows."""
    for _, row in read_lines(evaluation):
        index.add(row.source, row.id, plain_text(row.document))
    overlap = Overlap(evaluation_documents=len(index))
    kept = bytearray()
    documents = array("Q")  # numbers, not texts: there may be millions
    with out.open("wb") as out_file:
        for line, row in read_lines(train):
            dropped = _counted_as_overlap(index, row, overlap)
            kept.append(not dropped)
            if not dropped:
                documents.append(int(row.source, 16))
                out_file.write(line)
    overlap.kept = np.frombuffer(kept, dtype=bool)
    overlap.train_documents = len(np.unique(np.array(documents, dtype=np.uint64)))
    return overlap


def _counted_as_overlap(index: OverlapIndex, row: Row, overlap: Overlap) -> bool:
    same_id = index.exact(row.source)
    # Only the first examples name the evaluation row, so only they need the most similar one.
    as_example = len(overlap.examples) < OVERLAP_EXAMPLES
    near = None if same_id else index.near(plain_text(row.document), any_will_do=not as_example)
    if not same_id and not near:
        return False
    overlap.exact += bool(same_id)
    overlap.near += bool(near)
    if as_example:
        match = {"evaluation": same_id, "jaccard": 1.0}
        if near:
            match = {"evaluation": near.id, "jaccard": round(near.jaccard, 4)}
        overlap.examples.append({"train": row.id, **match, "exact": bool(same_id)})
    return True


def drop_seen(
    rows: Path, seen: Sequence[Path], jaccard: float, out: Path
) -> tuple[int, dict[str, int]]:
    """Copy the rows to `out`, without those about documents of the files `seen`.

    Returns how many rows stayed, and how many were dropped (`exact_dropped`, `near_dropped`).
    """
    index = OverlapIndex(jaccard)
    for path in seen:
        for _, row in read_lines(path):
            index.add(row.source, row.id, plain_text(row.document))
    fresh_rows, exact, near = 0, 0, 0
    with out.open("wb") as out_file:
        for line, row in read_lines(rows):
            if index.exact(row.source):
                exact += 1
            elif index.near(plain_text(row.document), any_will_do=True):
                near += 1
            else:
                fresh_rows += 1
                out_file.write(line)
    return fresh_rows, {"exact_dropped": exact, "near_dropped": near}
