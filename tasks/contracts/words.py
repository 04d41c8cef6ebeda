"""What counts as a word, in every script: for ROUGE, lengths, and what repeats in an output.

Considered: ICU (PyICU) and language segmenters such as jieba cut Chinese or Thai into words, but by
dictionaries whose version would change a score; blingfire and spaCy need a model for each language.
So scripts written without spaces count by character, as is usual for ROUGE on Chinese.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Literal

Words = Literal["latin", "unicode", "characters"]
# rouge_score's own pattern: any other character separates words.
LATIN = re.compile("[a-z0-9]+")
# Scripts written without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han, Yi and Tibetan.
UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u3005-\u3007\u3040-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
# The share of letters outside a-z from which a text is no longer read by LATIN: German has 1.5% of
# them, English names and loan words less than a tenth of that.
OTHER_LETTERS = 0.005


def words(text: str, kind: Words = "unicode") -> list[str]:
    """The words of a text, lower case.

    latin: runs of a-z and 0-9, as rouge_score has them. unicode: runs of letters, marks and digits of
    any script, and single characters of scripts that are written without spaces. characters: every
    letter or digit with its marks. The last two are of the text in Unicode's composed form (NFC).
    """
    if kind == "latin":
        return LATIN.findall(text.lower())
    folded = unicodedata.normalize("NFC", text).casefold()
    return _pattern(kind).findall(folded)


def kind_of(texts: list[str]) -> Words:
    """latin for texts in a-z but for some loan words and names, else unicode. No letters: latin."""
    letters = other = 0
    for text in texts:
        for character in text.lower():
            if character.isalpha():
                letters += 1
                other += not character.isascii()
    return "unicode" if other > OTHER_LETTERS * letters else "latin"


def holds_words(text: str) -> bool:
    """Whether a text holds a letter or digit of any script: a reader sees more than marks or blanks."""
    return any(character.isalnum() for character in text)


@functools.cache
def _pattern(kind: Words) -> re.Pattern[str]:
    marks = _marks()
    letter = r"[^\W_]"
    if kind == "characters":
        return re.compile(f"{letter}[{marks}]*")
    alone = f"(?:(?=[{UNSPACED}]){letter}[{marks}]*)"
    # Apostrophes and joiners within a word do not split it: l'eau stays two words, as readers of
    # French count it, but a zero-width joiner belongs to Persian and Hindi words.
    run = f"(?:(?![{UNSPACED}]){letter}[{marks}\u200c\u200d]*)+"
    return re.compile(f"{alone}|{run}")


@functools.cache
def _marks() -> str:
    """All combining marks, as ranges of a character class: vowel signs belong to their letter."""
    numbers = [n for n in range(0x300, 0x20000) if unicodedata.category(chr(n))[0] == "M"]
    numbers += range(0xE0100, 0xE01F0)
    ranges, start = [], numbers[0]
    for number, following in zip(numbers, [*numbers[1:], -1], strict=True):
        if following != number + 1:
            ranges.append(f"{chr(start)}-{chr(number)}")
            start = following
    return "".join(ranges)
