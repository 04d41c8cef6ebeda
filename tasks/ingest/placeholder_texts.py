"""Texts that only stand for a missing one, as `nan` and `null` do."""

from __future__ import annotations

from tasks.contracts.documents import Document, plain_text
from tasks.ingest.row_types import Example

# What programs write where a text is missing. "-" and "" are left to people: blank texts are rejected.
PLACEHOLDERS = {
    "[deleted]",
    "[removed]",
    "nan",
    "none",
    "null",
    "n/a",
    "na",
    "<na>",
    "nat",
    "undefined",
    "#n/a",
}
LONGEST_LOOKED_AT = 20


def placeholders(example: Example) -> list[str]:
    """A remark on each whole text that only stands for a missing one; such texts are used, and counted."""
    found = []
    for what, texts in (
        ("document", _texts(example.document)),
        ("summary", example.references),
    ):
        found += [
            f'has the {what} "{text.strip()}", which may stand for a missing text; it is used'
            for text in texts
            if len(text) <= LONGEST_LOOKED_AT and text.strip().lower() in PLACEHOLDERS
        ]
    return found


def _texts(document: Document) -> list[str]:
    return list(document.values()) if isinstance(document, dict) else [plain_text(document)]
