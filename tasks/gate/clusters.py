"""Which evaluation rows are about the same document, and so are one piece of evidence."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.contracts.documents import plain_text
from tasks.contracts.records import Prediction, Row
from tasks.contracts.similar_documents import DocumentIndex

# As ingest's defaults for training documents; constants, since a decision depends on them.
SIMILARITY, CONTAINMENT = 0.8, 0.5


def clusters(rows: Sequence[Row | Prediction], near_copies: bool = True) -> list[int]:
    """A cluster number for each row, counted from 0 in the order of first appearance.

    Rows of one `source` are one cluster, and so are rows whose documents differ only in white space, or
    with `near_copies` are like one another (similar_documents.py): copies of a row under new names, or
    with a few words changed, must not make an interval narrower.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for row in rows:
        parent[root(f"text {' '.join(plain_text(row.document).split())}")] = root(
            f"source {row.source}"
        )
    if near_copies:
        index = DocumentIndex(SIMILARITY, CONTAINMENT)
        texts = {row.source: plain_text(row.document) for row in rows}
        for source, text in texts.items():
            index.add(source, source, text)
        for source, text in texts.items():
            for other in sorted(index.alike(text)):
                parent[root(f"source {source}")] = root(f"source {other}")
    numbers: dict[str, int] = {}
    return [numbers.setdefault(root(f"source {row.source}"), len(numbers)) for row in rows]
