"""Training rows with an id, or about a document like one: what a model that was trained on them has learned.

Documents are compared as for overlap with evaluation rows (drop_overlap.py): the same one whatever its white
space, or by word 5-grams one that is like it, holds it, or is a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks.contracts.documents import plain_text
from tasks.contracts.similar_documents import DocumentIndex
from tasks.ingest.canonical_rows import read_lines
from tasks.ingest.row_types import source_of


@dataclass(frozen=True)
class LearnedRow:
    """A training row that was found. `how`: its id, or how its document is like the one asked for."""

    id: str
    how: str  # id, exact, similar, holds, part


def rows_with_id(train: Path, row_id: str) -> list[LearnedRow]:
    """The rows of a file of canonical rows that have this id."""
    return [LearnedRow(row.id, "id") for _, row in read_lines(train) if row.id == row_id]


def rows_about(train: Path, document: str, jaccard: float, containment: float) -> list[LearnedRow]:
    """The rows whose documents are this text, or like it. `jaccard`, `containment`: from what share on."""
    index = DocumentIndex(jaccard, containment)
    index.add(source_of(document), "asked", document)
    found = []
    for _, row in read_lines(train):
        if index.exact(row.source):
            found.append(LearnedRow(row.id, "exact"))
        elif near := index.near(plain_text(row.document)):
            # The index has the text that was asked for, so `holds` is a row that holds that text.
            found.append(LearnedRow(row.id, near.kind))
    return found
