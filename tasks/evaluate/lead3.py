"""Lead-3: a document's beginning as its summary, the baseline that costs nothing.

A model that scores below it may still be worth serving (it writes sentences, lead-3 quotes turns), but a
reader of the report should know.
"""

from __future__ import annotations

import re

from tasks.evaluate.sentences import sentences

PARTS = 3
# "#Person1#: Hello", "[10:32] Dr. Lee: Hello", and with a wide colon
TURN = re.compile("[^!?]{1,40}?(:\\s+|\uff1a\\s*)\\S")


def lead3(document: str) -> str:
    """The first three turns of a dialogue, a line each, or the first three sentences of a text.

    A dialogue is a text of several lines of which at least half begin with a speaker and a colon.
    In other text a line break is a space and a blank line ends a sentence; if that leaves fewer
    than three (a chat without names or full stops), each of its lines counts as a turn. An abbreviation
    before a capital letter ends a sentence too early.
    """
    lines = [line.strip() for line in document.splitlines() if line.strip()]
    of_document = _sentences(document)
    turns = sum(1 for line in lines if TURN.match(line))
    if len(lines) > 1 and (2 * turns >= len(lines) or len(of_document) < PARTS):
        return "\n".join(lines[:PARTS])
    return " ".join(of_document[:PARTS])


def _sentences(text: str) -> list[str]:
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [text for part in paragraphs for text in sentences(part)]
