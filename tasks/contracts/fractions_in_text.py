"""Fractions in a text by value: 70 1/2, 70\\1/2\\ (as bills are printed), 70½, 3/4, one-fifth, one-half, .5.

Python's fractions and text2num read one number that is known to be one, not those of a text.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

from tasks.contracts.number_words import UNITS, number_words

_ONE = ["a", *UNITS.split()[1:10]]
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
    "eighth": 8, "ninth": 9, "tenth": 10, "twentieth": 20, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
_VULGAR = "".join(chr(n) for n in [0xBC, 0xBD, 0xBE, *range(0x2150, 0x215F), 0x2189])
_SLASH = "[/\u2044\u2215]"
_DIGITS = re.compile(
    rf"(?<![\w.,/])(?:(?P<whole>\d{{1,4}})(?:\s*[\\\-\u2010-\u2015]\s*|\s+(?:and\s+)?))?"
    rf"\\?(?P<over>\d{{1,3}})\s?{_SLASH}\s?(?P<under>\d{{1,4}})(?![\d/.,]*\d)"
)
_SIGN = re.compile(rf"(?P<whole>\d{{1,4}})?\s?(?P<sign>[{_VULGAR}])")
_WORDS = re.compile(
    rf"\b(?:(?P<whole>\w+)[\s-]+and[\s-]+)?(?P<over>{'|'.join(_ONE)})[\s\-\u2010-\u2015]+"
    rf"(?P<under>{'|'.join(_PARTS)})s?\b",
    re.IGNORECASE,
)
_OF_SCALE = re.compile(
    r"\b(?P<part>half|quarter)\s+(?:of\s+)?(?:an?\s+)?(?P<scale>dozen|hundred|thousand|million|billion|trillion)\b",
    re.IGNORECASE,
)
_POINT = re.compile(r"(?<![\w.])\.\d+(?![\w])")  # .5 percent
LARGEST_PART = 1000  # what is over is a date or a number of a file


@dataclass(frozen=True)
class Fraction:
    """A fraction in a text: characters from `start` to before `end`.

    `value`: with the whole number before it; `values`: also of the part alone, and in percent.
    `run_together`: "70 12" for 70 1/2, as in data that lost their slashes; empty without a whole number.
    """

    start: int
    end: int
    value: Decimal
    values: frozenset[Decimal]
    run_together: str = ""


def fractions(text: str) -> list[Fraction]:
    """All fractions of a text; a date as 4/7/1994 is none."""
    found = []
    if "/" in text or not text.isascii():
        found += [
            _of(match, match["whole"], int(match["over"]), int(match["under"]))
            for match in _DIGITS.finditer(text)
            if 0 < int(match["under"]) <= LARGEST_PART
        ]
    if not text.isascii():
        for match in _SIGN.finditer(text):
            parts = unicodedata.normalize("NFKD", match["sign"]).split("\u2044")
            if denominator := int(parts[1] or 1):
                found.append(_of(match, match["whole"], int(parts[0]), denominator))
    for match in _WORDS.finditer(text):
        over = max(1, _ONE.index(match["over"].lower()))
        under = _PARTS[match["under"].lower().removesuffix("s")]
        whole = (match["whole"] or "").lower()
        number = str(_ONE.index(whole)) if whole in _ONE[1:] else whole if whole.isdigit() else None
        found.append(_of(match, number, over, under))
    found += [
        _exactly(
            match, number_words()[match["scale"].lower()] / Decimal(_PARTS[match["part"].lower()])
        )
        for match in _OF_SCALE.finditer(text)
    ]
    return [*found, *(_exactly(match, Decimal(f"0{match[0]}")) for match in _POINT.finditer(text))]


def _exactly(match: re.Match[str], value: Decimal) -> Fraction:
    return Fraction(match.start(), match.end(), value, frozenset([value]))


def _of(match: re.Match[str], whole: str | None, over: int, under: int) -> Fraction:
    part = Decimal(over) / Decimal(under)
    # Two thirds are also 67, 66.7 and 66.67 percent.
    values = {_rounded(part), *(_rounded(100 * part, places) for places in (0, 1, 2, 3))}
    together = f"{whole} {over}{under}" if whole else ""
    value = _rounded(Decimal(whole or 0) + part)
    return Fraction(match.start(), match.end(), value, frozenset([*values, value]), together)


def _rounded(value: Decimal, places: int = 3) -> Decimal:
    return round(value, places).normalize() + 0
