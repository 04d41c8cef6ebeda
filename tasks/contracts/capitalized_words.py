"""The words of a text and how they are written: with a capital, all in capitals, at a sentence's begin."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.contracts.name_forms import TITLES

_WORD = re.compile(r"#\w+#|(?:[^\W\d_]\.){2,}|[^\W_]+(?:['\u2019][^\W_]+)*")
# Marks after which a sentence, a quotation or a point of a list may begin.
_STARTS_SENTENCE = frozenset(
    '.!?:;\u2026\u2014\u2013-\u2022*([{\u00bf\u00a1\u3002\uff01\uff1f\u0964"\u201c\u201e\u00ab|/'
)
_POSSESSIVE = re.compile(r"['\u2019](?:s|S|re|ll|ve|d|m)?$")
_DETERMINER = re.compile(
    r"\s+(?:a|an|the|that|any|all|each|every|certain|such|no|some|its|their|this|these|those|how|whether)\b"
)


@dataclass(frozen=True)
class Word:
    """A word in a text, characters from `start` to before `end`; `folded` is it without case and accents."""

    start: int
    end: int
    folded: str
    capital: bool
    all_capital: bool
    first: bool  # of a sentence, or after a mark that may end one
    opens: bool  # reads like an English verb with its object: Repeals the, Shields a

    @property
    def name(self) -> bool:
        """Written like a name: with a capital, and of more than one letter; or a speaker's tag."""
        return self.capital and len(self.folded) > 1


def capitalized_words(text: str) -> Iterator[Word]:
    """All words with letters, in order, and speakers' tags (#Person1#)."""
    title = False
    for match in _WORD.finditer(text):
        folded, length, capital, all_capital = _as_written(match[0])
        if length:
            start = match.start()
            # Where a word begins matters of capitalized ones alone.
            first = capital and not title and _first(text, start)
            title = capital and folded.rstrip(".") in TITLES
            opens = first and _opens(folded, text, match.end())
            yield Word(start, start + length, folded, capital, all_capital, first, opens)


@functools.lru_cache(maxsize=1 << 17)
def _as_written(found: str) -> tuple[str, int, bool, bool]:
    """A word folded, its length without what is not its own, whether it has a capital, and all are."""
    word = _POSSESSIVE.sub("", found)
    letters = [c for c in word if c.isalpha()]
    if not letters:
        return "", 0, False, False
    capital = word.startswith("#") or any(c.isupper() or c.istitle() for c in letters)
    of_acronym = letters[:-1] if letters[-1] == "s" else letters
    all_capital = len(letters) > 1 and all(c.isupper() for c in of_acronym)
    if 3 <= len(of_acronym) <= 4 and of_acronym[0].isupper() and of_acronym[-1].isupper():
        all_capital = True  # DoD
    return _folded(word), len(word), capital, all_capital


def _first(text: str, start: int) -> bool:
    place = start - 1
    blank = False
    while place >= 0 and text[place] in " \t'\u2018\u2019":
        blank, place = True, place - 1
    if place < 0 or text[place] in "\r\n":
        return True
    # A hyphen or a point within a word begins nothing.
    if text[place] == ")":  # (2) of a list
        return "(" in text[max(0, place - 4) : place]
    return text[place] in _STARTS_SENTENCE and (blank or text[place] not in "-./")


def _opens(folded: str, text: str, end: int) -> bool:
    return folded.endswith(("s", "ed", "ing")) and _DETERMINER.match(text, end) is not None


@functools.lru_cache(maxsize=1 << 16)
def _folded(word: str) -> str:
    if word.isascii():
        return word.lower()
    decomposed = unicodedata.normalize("NFKD", word.replace("\u2019", "'")).casefold()
    return "".join(c for c in decomposed if not unicodedata.combining(c))
