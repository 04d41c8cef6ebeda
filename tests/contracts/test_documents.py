"""A row's document may be a text, texts by name or a conversation, and stays so on disk."""

from __future__ import annotations

import pytest

from tasks.contracts.documents import Document, plain_text
from tasks.contracts.records import Row
from tasks.ingest.canonical_rows import read_lines, row_json

KINDS: list[tuple[Document, str]] = [
    ("a text", "a text"),
    ('["a text that looks like JSON"]', '["a text that looks like JSON"]'),
    ({"instruction": "Shorten.", "context": "Long.", "hint": ""}, "Shorten.\n\nLong."),
    ([{"role": "user", "content": "Who?"}, {"role": "user", "content": "You."}], "Who?\n\nYou."),
]


@pytest.mark.parametrize(("document", "words"), KINDS)
def test_a_document_of_each_kind_is_the_same_after_it_was_stored(
    document: Document, words: str, tmp_path
) -> None:
    """Its line of JSON gives back the document, and its words are one text."""
    row = Row("1", "a", document, ("r",))
    (tmp_path / "rows.jsonl").write_bytes(row_json(row))
    [(_, stored)] = read_lines(tmp_path / "rows.jsonl")
    assert stored == row
    assert plain_text(stored.document) == words
