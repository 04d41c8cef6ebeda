"""What a row's document may be, and its words as one text.

Overlap, clusters, lead-3 and reports read the words; prompts are made of the document itself.
"""

from __future__ import annotations

from typing import Any

# A text; several texts by name, for a prompt with a place for each; or a conversation up to its last
# question, as messages ({"role": ..., "content": ...}).
Document = str | dict[str, str] | list[dict[str, Any]]


def plain_text(document: Document) -> str:
    """The document's words: a text as it is, several texts or messages with a blank line between."""
    if isinstance(document, str):
        return document
    if isinstance(document, dict):
        return "\n\n".join(text for text in document.values() if text)
    return "\n\n".join(message["content"] for message in document)
