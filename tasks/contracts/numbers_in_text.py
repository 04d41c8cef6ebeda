"""Numbers in a text by value, in digits of any script and in words: 1,000, 1.000, one thousand, 一千.

Considered: text2num and word2number, which need the language of each text, know no times of day, and would
make a stored decision depend on their version. Its dictionary is number_words.py.

Over 250 lines: numbers alone and what they mean with their neighbours are read together.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

from tasks.contracts.fractions_in_text import fractions
from tasks.contracts.number_words import (
    HAN_DIGITS,
    HAN_SCALES,
    LETTERS,
    OTHER_WORDS,
    SCALES,
    foreign_words,
    number_words,
)

_HAN = "".join([*HAN_DIGITS, *HAN_SCALES])
_TOKEN = re.compile(
    r"(?P<time>(?<![\d:])(?:[01]?\d|2[0-4])[:h][0-5]\d(?::[0-5]\d)?(?![\d:]))"
    # Digits after a letter are part of a name or code: MP3, B12.
    r"|(?P<digits>(?<![A-Za-z\u00c0-\u024f\d])(?:\d{1,3}(?:[.,'\u2019\u00a0\u202f]\d{2,3})*[.,'\u2019\u00a0\u202f]\d{3}(?:[.,]\d+)?(?![\d])"
    r"|\d+[.,]\d+(?![\d])|\d+))"
    rf"|(?P<han>[{_HAN}]+)"
    r"|(?P<word>[^\W\d_" + _HAN + r"]+)"
)
_AFTER_LETTER = re.compile(r"(?<=[A-Za-z])\d+")
_GROUPED = re.compile(r"\d{1,3}(?:[.,'\u2019\u00a0\u202f]\d{2,3})*[.,'\u2019\u00a0\u202f]\d{3}")
_JOINS = re.compile(r"[\s\-\u2010-\u2015]*(?:and\s+)?|\s+and\s+", re.IGNORECASE)
_AFTER_NOON = re.compile(r"\s*[ap]\.?\s?m\b", re.IGNORECASE)
_DECADE = re.compile(r"['\u2019]?s\b")
# Between two numbers that are spoken as one: five dollars (and) fifty, nineteen oh five, three-thirty.
_SAID_AS_ONE = re.compile(
    r"[\s\-\u2010-\u2015,/]*(?:(?:dollars?|pounds?|euros?|bucks?|yuan|and|point|oh|o|o'clock|feet|foot)\W+)*",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"\s*(?:minutes?\s+)?(past|after|to|till|before)\s+", re.IGNORECASE)
_AND_A = re.compile(r"\s+and\s+an?\s+", re.IGNORECASE)
_THROUGH = re.compile(
    r"\s*(?:through|to|until|till|[-\u2010-\u2015])\s*(?:fiscal\s+year\s+)?", re.IGNORECASE
)
LONGEST_SPAN = 30  # years of which all are meant
_ENUMERATOR = re.compile(r"\((?=\d{1,2}\))(\d+)|^[ \t]*(?=\d{1,2}[.)]\s)(\d+)", re.MULTILINE)
_SHORT_YEAR = re.compile(r"(?:['\u2019]|(?<!\d)(?:19|20)\d\d[-\u2010-\u2015/])$")  # '98, 1998-99
_REFERRED = re.compile(  # paragraph (12) is a number, the 12th point of a list is none
    r"\b(?:(?:sub)?(?:paragraph|clause|section|item|title|chapter|part|rule|article)s?)\s+(?:\(\w+\))*\((\d{1,2})\)",
    re.IGNORECASE,
)
_SPACED = re.compile(r"(?<=\d)([.,])[ \t](?=\d)")  # 4. 5 %, 10, 000: as some data are written
HALF_DAY = 720  # minutes


@dataclass(frozen=True)
class Number:
    """A number in a text: characters from `start` to before `end`, and the values it may mean."""

    start: int
    end: int
    values: tuple[Decimal, ...]
    minutes: int | None = None  # a time of day, within half a day
    in_words: bool = False
    loose: bool = False  # one of OTHER_WORDS or FOREIGN
    decade: bool = False  # 1990s


@dataclass(frozen=True)
class KnownNumbers:
    """What numbers a document supports."""

    values: frozenset[Decimal]
    minutes: frozenset[int]
    digits: str  # all digits, where only signs or blanks stand between them as one run
    run_together: frozenset[str] = frozenset()  # of fractions: "70 12" for 70 1/2

    def has(self, number: Number) -> bool:
        """Whether the document holds this number in any form."""
        if number.minutes is not None:
            hours = {number.minutes // 60 or 12, number.minutes // 60 + 12}
            on_the_hour = number.minutes % 60 == 0 and any(Decimal(h) in self.values for h in hours)
            return number.minutes in self.minutes or on_the_hour
        if not self.values.isdisjoint(number.values):
            return True
        if any(
            (int(v) % 12) * 60 + v % 1 * 100 in self.minutes
            for v in number.values
            if 0 < v % 1 < 0.6
        ):
            return True  # 1.30 is half past one
        if number.decade:
            decades = {int(value) // 10 for value in number.values}
            return any(int(value) // 10 in decades for value in self.values)
        return any(len(d := f"{v.normalize():f}") > 3 and d in self.digits for v in number.values)


def known_numbers(document: str) -> KnownNumbers:
    """All that a document's numbers may mean, alone and with their neighbours."""
    text = ascii_digits(document)
    found = numbers(text)
    values, minutes = {Decimal(m[0]) for m in _AFTER_LETTER.finditer(text)}, set[int]()
    for number in found:
        values.update(number.values)
        if number.minutes is not None:
            minutes.add(number.minutes)
            values.update(_of_time(number.minutes))
    for left, right in itertools.pairwise(found):
        gap = text[left.end : right.start]
        if len(gap) > 24:
            continue
        if (clock := _CLOCK.fullmatch(gap)) and (
            at := _at(left, right, clock[1].lower())
        ) is not None:
            minutes.add(at)
            values.update(_of_time(at))
        elif _AND_A.fullmatch(gap):
            values.update(a + b for a in left.values for b in right.values if b < 1)
        else:
            if _THROUGH.fullmatch(gap):
                values.update(_between(left, right))
            if _SAID_AS_ONE.fullmatch(gap):  # half past eight is eight-thirty too
                _add_said_as_one(left, right, values, minutes)
    if _SPACED.search(text):
        closed = _SPACED.sub(r"\1", text)
        values.update(value for number in numbers(closed) for value in number.values)
    values.update(Decimal(match[1]) for match in _REFERRED.finditer(text))
    parts = fractions(text)
    values.update(value for part in parts for value in part.values)
    # $0.25 is 25 cents, and 0.25 percent 25 basis points.
    values.update(100 * v for v in list(values) if 0 < v < 1 and 100 * v == int(100 * v))
    return KnownNumbers(
        frozenset(values),
        frozenset(minutes),
        _joined_digits(text, found),
        frozenset(part.run_together for part in parts if part.run_together),
    )


def _between(left: Number, right: Number) -> set[Decimal]:
    """The years of `2009 through 2013`."""
    if not (left.values and right.values):
        return set()
    first, last = int(left.values[0]), int(right.values[0])
    if not (1900 <= first <= last <= 2100 and last - first <= LONGEST_SPAN):
        return set()
    return set(map(Decimal, range(first, last + 1)))


def _of_time(minutes: int) -> set[Decimal]:
    hour, minute = divmod(minutes, 60)
    values = {Decimal(hour or 12), Decimal(hour + 12), Decimal(minute)}
    return values | ({Decimal("0.5")} if minute == 30 else set())


def _at(left: Number, right: Number, word: str) -> int | None:
    """Minutes of `twenty to three`; None if no time."""
    minute, hour = (next((v for v in n.values if v >= 1), Decimal(0)) for n in (left, right))
    if left.loose and Decimal("0.25") in left.values:
        minute = Decimal(15)
    if left.loose and Decimal("0.5") in left.values:
        minute = Decimal(30)
    if not (1 <= hour <= 24 and minute < 60):
        return None
    past = word in ("past", "after")
    return int(hour * 60 + (minute if past else -minute)) % HALF_DAY


def _add_said_as_one(left: Number, right: Number, values: set[Decimal], minutes: set[int]) -> None:
    if not (left.values and right.values):
        return
    first, second = left.values[0], right.values[0]
    if first != int(first) or second != int(second):
        return
    if 1 <= first <= 24 and second < 60:
        minutes.add(int(first * 60 + second) % HALF_DAY)
    if second < 100:
        values.update({first + second / 100, first * 100 + second})
    if second < 10:
        values.add(first + second / 10)


def _joined_digits(text: str, found: list[Number]) -> str:
    runs, end = list[str](), -9
    for number in found:
        if number.in_words and not (number.values and number.values[0] < 10):
            continue
        own = (
            str(int(number.values[0]))
            if number.in_words
            else re.sub(r"\D", "", text[number.start : number.end])
        )
        joined = runs and re.fullmatch(r"[\s\-.,()/]{0,3}", text[end : number.start])
        runs.append(own if joined else f" {own}")
        end = number.end
    return "".join(runs)


def numbers(text: str) -> list[Number]:
    """All numbers of a text, in order; digits of any script, the words of this file's tables."""
    reader = _Reader(ascii_digits(text))
    read = {"time": reader.time, "han": reader.han, "digits": reader.digits, "word": reader.word}
    for token in _TOKEN.finditer(reader.text):
        read[str(token.lastgroup)](token)
    reader.close()
    return reader.found


class _Reader:
    """Reads a text token by token; `phrase` is a number that the next word may still add to."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.found: list[Number] = []
        self.phrase: _Phrase | None = None
        self.enumerators = {
            m.start() + m[0].index(next(c for c in m[0] if c.isdigit()))
            for m in _ENUMERATOR.finditer(text)
        }

    def close(self) -> None:
        """The phrase is complete."""
        if self.phrase:
            self.found.append(self.phrase.closed())
            self.phrase = None

    def time(self, token: re.Match[str]) -> None:
        hour, minute = re.split("[:h]", token[0])[:2]
        self.close()
        at = (int(hour) * 60 + int(minute)) % HALF_DAY
        # A ratio or a score, 3:20, is also its two numbers.
        self.found.append(Number(token.start(), token.end(), (), at))

    def han(self, token: re.Match[str]) -> None:
        phrase = self.phrase
        if token[0] in HAN_SCALES and phrase and phrase.end == token.start():
            scaled = tuple(value * HAN_SCALES[token[0]] for value in phrase.group)  # 3万
            self.found.append(Number(phrase.start, token.end(), scaled))
            self.phrase = None
            return
        self.close()
        self.found.append(_han(token))

    def digits(self, token: re.Match[str]) -> None:
        self.close()
        if token.start() not in self.enumerators:
            self.phrase = _Phrase.of_digits(token, self.text)

    def word(self, token: re.Match[str]) -> None:
        lower = token[0].casefold()
        value = number_words().get(lower)
        if value is not None:
            if self.phrase and self.phrase.takes(lower, value, token, self.text):
                return
            self.close()
            self.phrase = _Phrase.of_word(lower, value, token)
            return
        if lower != "and":
            self.close()
        if lower in OTHER_WORDS or lower in foreign_words():
            meant = OTHER_WORDS.get(lower) or str(foreign_words()[lower])
            values = tuple(map(Decimal, meant.split()))
            self.found.append(Number(token.start(), token.end(), values, None, True, True))


class _Phrase:
    """A number while its words are read: digits or words, then scales (3 million, two hundred and five)."""

    def __init__(self, start: int, end: int, values: list[Decimal], last: int, words: bool) -> None:
        self.start, self.end, self.group, self.last, self.words = start, end, values, last, words
        self.total, self.decade, self.plain = Decimal(0), False, list[Decimal]()

    @classmethod
    def of_digits(cls, token: re.Match[str], text: str) -> _Phrase:
        made = cls(token.start(), token.end(), _readings(token[0]), 0, False)
        if (noon := _AFTER_NOON.match(text, token.end())) and made.group[0] <= 12:
            made.group.append(made.group[0] + 12)
            made.end = noon.end()
        if len(token[0]) == 2 and _SHORT_YEAR.search(text, token.start() - 5, token.start()):
            made.group += [made.group[0] + 1900, made.group[0] + 2000]
        made.decade = bool(_DECADE.match(text, token.end())) and len(token[0]) in (2, 4)
        return made

    @classmethod
    def of_word(cls, word: str, value: int, token: re.Match[str]) -> _Phrase | None:
        if word in SCALES and word not in ("thousand", "million", "billion", "dozen"):
            return None
        return cls(token.start(), token.end(), [Decimal(value)], value, True)

    def takes(self, word: str, value: int, token: re.Match[str], text: str) -> bool:
        """Whether the word goes on with this number, and if so its value is taken in."""
        gap = text[self.end : token.start()]
        if not _JOINS.fullmatch(gap) or len(gap) > 8:
            return False
        if value >= 100 or word in SCALES:
            if word in LETTERS and (self.words or gap.strip()):
                return False
            if "and" in gap.lower() or (value == 100 and self.last >= 100):
                return False
            if word in LETTERS:  # 401k and section 5b are no thousands
                self.plain = list(self.group)
            self.group = [group * value for group in self.group]
            if value > 100:
                self.total += self.group[0]
                if len(self.group) == 1:
                    self.group = [Decimal(0)]
            self.last = value
        elif self.words and (
            self._may_add(value) and ("and" not in gap.lower() or self.last >= 100)
        ):
            self.group, self.last = [group + value for group in self.group], value
        else:
            return False
        self.end = token.end()
        return True

    def _may_add(self, value: int) -> bool:
        after_tens = self.last in range(20, 100, 10) and 0 < value < 10
        return after_tens or (self.last >= 100 and value < 100)

    def closed(self) -> Number:
        values = self.group if len(self.group) > 1 else [self.total + self.group[0]]
        values = [*values, *self.plain]
        return Number(self.start, self.end, tuple(values), None, self.words, False, self.decade)


def _readings(digits: str) -> list[Decimal]:
    """1,000 and 1.000 are a thousand, or one; 1,5 and 1.5 one and a half."""
    plain = re.sub(r"['\u2019\u00a0\u202f]", "", digits)
    if plain.isdigit():
        return [Decimal(plain)]
    if _GROUPED.fullmatch(digits):
        grouped = [Decimal(re.sub(r"\D", "", digits))]
        once = len(re.findall(r"[.,]", plain)) == 1
        return [*grouped, *([Decimal(plain.replace(",", "."))] if once and "." in plain else [])]
    whole, fraction = re.split(r"[.,](?=\d+$)", plain)
    return [Decimal(f"{re.sub(r'[.,]', '', whole)}.{fraction}")]


def _han(token: re.Match[str]) -> Number:
    """A run of Chinese numerals; one alone may be part of a word, and only supports."""
    run = token[0]
    value, group, digit = 0, 0, 0
    for character in run:
        if character in HAN_DIGITS:
            digit = digit * 10 + HAN_DIGITS[character] if digit else HAN_DIGITS[character]
        elif (scale := HAN_SCALES[character]) < 10**4:
            group, digit = group + (digit or 1) * scale, 0
        else:
            value, group, digit = value + (group + digit or 1) * scale, 0, 0
    number = Decimal(value + group + digit)
    return Number(token.start(), token.end(), (number,), None, True, len(run) == 1)


def ascii_digits(text: str) -> str:
    """The text with digits and their marks of other scripts as ASCII, character for character."""
    if text.isascii():
        return text
    return "".join(map(_ascii, text))


@functools.lru_cache(maxsize=4096)
def _ascii(character: str) -> str:
    if character.isascii():
        return character
    if (value := unicodedata.decimal(character, None)) is not None:
        return str(value)
    return {"\u066b": ".", "\u066c": ",", "\uff0e": ".", "\uff0c": ",", "\uff1a": ":"}.get(
        character, character
    )
