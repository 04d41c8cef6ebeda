"""What a row's document may be, and its words as one text.

Overlap, clusters, lead-3 and reports read the words; prompts are made of the document itself.
"""

from __future__ import annotations

from typing import Any

# A text; several texts by name, for a prompt with a place for each; or a conversation up to its last
# question, as messages ({"role": ..., "content": ...}).
Document = str | dict[str, str] | list[dict[str, Any]]
TEXT, SEVERAL_TEXTS, CONVERSATION = "text", "several texts", "conversation"


def form_of(document: Document) -> str:
    """Which of these a document is."""
    if isinstance(document, str):
        return TEXT
    return SEVERAL_TEXTS if isinstance(document, dict) else CONVERSATION


def plain_text(document: Document) -> str:
    """The document's words: a text as it is, several texts or messages with a blank line between.

    A conversation's system message is no part of them: many rows share it, and it would make documents
    alike that are not.
    """
    if isinstance(document, str):
        return document
    if isinstance(document, dict):
        return "\n\n".join(text for text in document.values() if text)
    return "\n\n".join(message["content"] for message in document if message["role"] != "system")


def shown_text(document: Document) -> str:
    """The document as a report shows it: of several texts and messages who or what each is."""
    if isinstance(document, str):
        return document
    if isinstance(document, dict):
        return "\n\n".join(f"{name}: {text}" for name, text in document.items())
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in document)
