"""Which evaluation rows are about the same document, and so are one piece of evidence."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.contracts.documents import plain_text
from tasks.contracts.records import Prediction


def clusters(rows: Sequence[Prediction]) -> list[int]:
    """A cluster number for each row, counted from 0 in the order of first appearance.

    Rows of one `source` are one cluster, and so are rows whose documents differ only in white space:
    copies of a row under new names must not make an interval narrower.
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
    numbers: dict[str, int] = {}
    return [numbers.setdefault(root(f"source {row.source}"), len(numbers)) for row in rows]
