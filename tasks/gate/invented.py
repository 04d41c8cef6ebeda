"""Which outputs say numbers or names that neither their document nor any of its references holds."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.contracts.documents import plain_text
from tasks.contracts.records import Prediction
from tasks.contracts.unsupported import Support, Usage, unsupported


def invented(*tables: Sequence[Prediction]) -> list[list[bool]]:
    """Of each table a flag a row. The tables hold the same rows in the same order.

    What a word is as a name is read from all documents and references, which no model writes.
    """
    rows = tables[0]
    texts = ["\n\n".join([plain_text(row.document), *row.references]) for row in rows]
    usage = Usage.of(texts)
    flags: list[list[bool]] = [[] for _ in tables]
    for text, *outputs in zip(texts, *tables, strict=True):
        support = Support.of(text)
        for of_table, row in zip(flags, outputs, strict=True):
            of_table.append(bool(unsupported(row.text, support, usage)))
    return flags
