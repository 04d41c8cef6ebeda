"""A row's document may be a text, texts by name or a conversation, and stays so on disk."""

from __future__ import annotations

import pytest

from tasks.contracts.documents import Document, plain_text, shown_text
from tasks.contracts.records import Row
from tasks.ingest.canonical_rows import read_lines, row_json

KINDS: list[tuple[Document, str]] = [
    ("a text", "a text"),
    ('["a text that looks like JSON"]', '["a text that looks like JSON"]'),
    ({"instruction": "Shorten.", "context": "Long.", "hint": ""}, "Shorten.\n\nLong."),
    (
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "You.", "weight": 0},
        ],
        "Who?\n\nYou.",
    ),
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


def test_a_report_shows_who_spoke_and_what_a_text_is() -> None:
    """The system message too, which is no part of the words that are compared."""
    texts = [shown_text(document) for document, _ in KINDS]
    assert texts[0] == "a text"
    assert texts[2] == "instruction: Shorten.\n\ncontext: Long.\n\nhint: "
    assert texts[3] == "system: Be brief.\n\nuser: Who?\n\nassistant: You."
