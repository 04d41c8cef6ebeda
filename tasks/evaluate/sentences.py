"""Where sentences end, in every script: for lead-3, and for rougeLsum, which compares line by line.

Considered: nltk's punkt, which users of rouge_score split with, fetches a model for each language; pysbd
knows 22 languages by rules and reads an English text 100 times as slowly.
"""

from __future__ import annotations

import re

# A mark, perhaps a closing quote or bracket, then white space, and no lower-case letter or digit after it.
_SPACED = r"(?:(?<=[.!?])|(?<=[.!?][\"'\u2019\u201d)\]]))\s+(?![a-z\d])"
# End a sentence whatever follows: CJK, Devanagari, Arabic, Urdu, Ethiopic, Armenian, Myanmar, Khmer.
_MARKS = "\u3002\uff01\uff1f\uff61\u0964\u0965\u061f\u06d4\u1362\u1367\u0589\u104b\u17d4\u17d5"
_CLOSING = "\"'\u2019\u201d)\\]\u300d\u300f\uff09\u3011\u300b"
_UNSPACED = (
    rf"(?<=[{_MARKS}])(?![{_MARKS}{_CLOSING}])\s*|(?<=[{_MARKS}][{_CLOSING}])(?![{_CLOSING}])\s*"
)
SENTENCE_END = re.compile(f"{_SPACED}|{_UNSPACED}")


def sentences(text: str) -> list[str]:
    """The sentences of one paragraph, without white space around them; blank ones are left out.

    An abbreviation before a capital letter ends a sentence too early.
    """
    return [part for piece in SENTENCE_END.split(text) if (part := piece.strip())]


def one_a_line(text: str) -> str:
    """The text with each sentence on a line of its own; lines that it has stay lines."""
    return "\n".join(part for line in text.splitlines() for part in sentences(line))
