"""Evaluation rows about documents that a champion was trained on: they favour it, whatever it learned.

Ingest drops a challenger's training rows that are like evaluation rows. The champion was trained by an
earlier run, maybe against other evaluation rows; its training rows are compared in the same way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tasks.contracts.documents import plain_text
from tasks.contracts.similar_documents import DocumentIndex
from tasks.ingest.canonical_rows import read_lines


@dataclass(frozen=True)
class SeenRows:
    """How many evaluation rows a model was trained on, exactly or in a form like it, and the first such."""

    seen: int
    rows: int
    first: str = ""

    def remark(self, champion: str) -> str:
        """A sentence for the decision; empty where none was seen."""
        if not self.seen:
            return ""
        return (
            f"{self.seen} of {self.rows} evaluation rows ({self.seen / self.rows:.1%}) are about documents "
            f"that {champion} was trained on, or like them, such as {self.first!r}: they favour the "
            "champion; take evaluation rows that it was not trained on"
        )


def seen_rows_of(evaluation: Path, train: Path, index: DocumentIndex) -> SeenRows:
    """The evaluation rows whose documents are, or are like, documents of the training rows.

    Both are files of canonical rows. `index`: an empty one.
    """
    rows: Counter[str] = Counter()
    source_of_id: dict[str, str] = {}
    for _, row in read_lines(evaluation):
        index.add(row.source, row.id, plain_text(row.document))
        rows[row.source] += 1
        source_of_id.setdefault(row.id, row.source)
    seen: set[str] = set()
    for _, row in read_lines(train):
        if exact := index.exact(row.source):
            seen.add(exact)
        seen |= index.alike(plain_text(row.document))
    first = next((id_ for id_ in source_of_id if id_ in seen), "")
    return SeenRows(sum(rows[source_of_id[id_]] for id_ in seen), rows.total(), first)
