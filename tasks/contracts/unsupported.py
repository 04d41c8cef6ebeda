"""What an output says that its document does not support: numbers and names, by their characters.

Numbers count by value, in any form (numbers_in_text.py). Names are capitalized words in scripts that have
case, but for words that the evaluation set writes in lower case too; they may be inflected, accented,
abbreviated or spelt with one letter more. In scripts without case, and in German, where every noun has a
capital, numbers alone.

Considered: entity taggers (spaCy, stanza) and NLI checks (summac), which are models to download, differ by
version, and know some languages; of numbers none knows that 15:30 is half past three.

Over 250 lines: a name's forms are tried one after another, and are read together.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal

from tasks.contracts.capitalized_words import Word, capitalized_words
from tasks.contracts.fractions_in_text import fractions
from tasks.contracts.name_forms import (
    MONTHS,
    OPENERS,
    SMALL_WORDS,
    STATE_NAMES,
    STATES,
    TITLES,
    is_german,
    name_forms,
    same_names,
    stem,
)
from tasks.contracts.number_words import SCALES
from tasks.contracts.numbers_in_text import KnownNumbers, Number, known_numbers, numbers

# Counted or named in passing: a summary may say "two people" or "the first" of any document.
UNCHECKED_WORDS = 3
ALSO_LOWER = 10  # a word this seldom in lower case is a word still: Federal, State
SELDOM = 5  # times as often in the other form
SAME_STEM = 7  # first letters, by which longer words are one: Administrator, Administration
LEAST_SPELLED = 5  # letters of a name that may be spelt with one letter more, less or another


_ROMAN = re.compile("[ivxlcdm]{2,}")
_NUMBERED = re.compile("([a-z]{2,}?)(i{2,3}|iv|vi{0,3}|ix)")
_NUMERAL = re.compile(
    r"\b(?:(?:title|part|chapter|article|phase|type|class|schedule|level|volume|section)s?\s+([IVX])"
    r"|(X{0,3}(?:IX|IV|V?I{0,3})))\b(?!\.\w)",
)
# Sections of the Social Security Act and the Public Health Service Act are numbered by their title:
# 1877 is in title XVIII, 2701 in XXVII.
_SECTION = re.compile(r"\bsections?\s+(\d\d)\d\d(?!\d)", re.IGNORECASE)
_TO = re.compile(r"\s*(?:to|and|or|through|[-\u2010-\u2015])\s*[$\u20ac\u00a3]?\s*", re.IGNORECASE)
_DEFINITION = re.compile(r"[\"\u201c(](?:the\s+)?[\"\u201c]?([A-Z][A-Za-z.&\d-]{1,9})[\"\u201d),;]")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")


@dataclass(frozen=True)
class Span:
    """Characters of an output, from `start` to before `end`, that its document does not support."""

    start: int
    end: int
    text: str


@dataclass
class Usage:
    """How a set of texts writes its words: which are written in lower case, and so are no names."""

    lower: Counter[str] = field(default_factory=Counter)
    capital: Counter[str] = field(default_factory=Counter)  # within a sentence
    first: Counter[str] = field(default_factory=Counter)  # capitalized at its start
    stems: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Usage:
        """The usage of documents and references; of all rows, so that common words are found."""
        usage = cls()
        for text in texts:
            for word in capitalized_words(text):
                if word.capital:
                    (usage.first if word.first else usage.capital)[word.folded] += 1
                else:
                    usage.lower[word.folded] += 1
        usage.stems = {stem(word) for word in usage.lower}
        return usage

    def common(self, word: Word) -> bool:
        """Whether a capitalized word is no name: more often in lower case, or only begins a sentence."""
        lower, capital = self.lower[word.folded], self.capital[word.folded]
        if (lower >= 3 and lower * ALSO_LOWER >= capital) or lower > capital:
            return True
        if not word.first or word.all_capital:
            return False
        if word.folded in OPENERS or word.opens:
            return True
        return SELDOM * capital <= self.first[word.folded] and stem(word.folded) in self.stems


def unsupported(output: str, support: str | Support, usage: Usage | None = None) -> list[Span]:
    """Numbers and names of an output that the document does not hold in any form, in order.

    `support`: the document, or what was read of it. `usage`: of the evaluation set; without it of
    the document alone.
    """
    known = support if isinstance(support, Support) else Support.of(support)
    usage = usage or Usage.of([known.text])
    found = numbers(output)
    spans = [_span(output, n.start, n.end) for n in _numbers_without_support(output, found, known)]
    if not is_german(output):
        named = [
            word for word in capitalized_words(output) if word.name and word.folded not in TITLES
        ]
        counted = {place for n in found for place in range(n.start, n.end)}  # Twenty-First
        named = [word for word in named if word.start not in counted]
        defined = _defined(output)
        named = [word for word in named if word.folded.rstrip("s") not in defined]
        spans += [
            _span(output, word.start, word.end)
            for place, word in enumerate(named)
            if not usage.common(word) and not known.has(word, named, place)
        ]
    spans.sort(key=lambda span: (span.start, -span.end))
    return [
        span
        for before, span in zip([None, *spans], spans, strict=False)
        if before is None or span.end > before.end
    ]


def _numbers_without_support(output: str, found: list[Number], known: Support) -> list[Number]:
    dates = [match.span() for match in _DATE.finditer(output)]
    held = [(f.start, f.end) for f in fractions(output) if f.value in known.numbers.values]
    missing = []
    for before, number, after in zip([None, *found], found, [*found[1:], None], strict=False):
        least = UNCHECKED_WORDS if number.in_words else 1
        small = number.values and max(number.values) <= least
        in_date = any(start <= number.start < end for start, end in dates)
        month = in_date and not known.months.isdisjoint(map(int, number.values))
        if number.loose or small or month or known.numbers.has(number):
            continue
        if any(start <= number.start < end for start, end in held):
            continue
        together = output[before.start : number.end] if before else ""
        if " ".join(together.split()) in known.numbers.run_together:
            continue
        if after and (scaled := _scaled(output, number, after)) and known.numbers.has(scaled):
            continue
        missing.append(number)
    return missing


def _scaled(output: str, number: Number, after: Number) -> Number | None:
    """`1.5` of `1.5 to 2 million` in millions."""
    scale = SCALES.get(output[after.start : after.end].rsplit(maxsplit=1)[-1].casefold())
    if not scale or not _TO.fullmatch(output, number.end, after.start):
        return None
    return replace(number, values=tuple(value * scale for value in number.values))


def _defined(output: str) -> set[str]:
    """Abbreviations that the output itself explains: `Department of Education (ED)`."""
    found: set[str] = set()
    for match in _DEFINITION.finditer(output):
        short = match[1].casefold().replace(".", "")
        before = re.findall(r"[^\W\d_]+", output[max(0, match.start() - 120) : match.start()])
        # CAFTA-DR: of Dominican Republic-Central America Free Trade Agreement, in another order.
        parts = [part for part in short.split("-") if part]
        near = before[-int(1.5 * len(short)) - 1 :]
        if all(_explained(part, near) or _explained(part.rstrip("s"), near) for part in parts):
            found.update(part.rstrip("s") for part in (short, *parts))
    return found


def _explained(short: str, before: list[str]) -> bool:
    letters = [letter for letter in short if letter.isalpha()]
    if not Counter(letters) - Counter(word[0].casefold() for word in before):
        return True
    # tuberculosis (TB), polychlorinated biphenyls (PCBs): letters within common words.
    for words in (before[-1:], before[-2:]):
        rest = iter("".join(words))
        if len(words) < len(letters) and all(letter in rest for letter in letters):
            return words[0][0] == letters[0]
    return False


def _span(output: str, start: int, end: int) -> Span:
    return Span(start, end, output[start:end])


@dataclass(frozen=True)
class Support:
    """What a document supports. Made once a row."""

    text: str
    numbers: KnownNumbers
    words: frozenset[str]
    stems: frozenset[str]
    acronyms: frozenset[str]
    joined: frozenset[str]  # two neighbouring words in one
    initials: str  # of runs of capitalized words
    all_initials: str  # of all words, of small ones as capitals
    large_initials: (
        str  # of all but small ones: old-age, survivors, and disability insurance is OASDI
    )
    titles: frozenset[int]  # of the Acts that its sections are in
    months: frozenset[int]
    starts: dict[str, tuple[str, ...]]  # capitalized words by their first three letters

    @classmethod
    def of(cls, text: str) -> Support:
        """Read a document."""
        found = list(capitalized_words(text))
        folded = [word.folded for word in found]
        parts = [part for word in folded for part in re.split(r"['.]|(?<=\d)(?=\D)", word) if part]
        parts += [word.folded.removesuffix("s") for word in found if word.all_capital]  # CDs
        words = frozenset([*folded, *parts, *(word.replace(".", "") for word in folded)])
        names = sorted({word.folded for word in found if word.capital and len(word.folded) > 2})
        starts: dict[str, tuple[str, ...]] = {}
        for name in names:
            starts[name[:3]] = (*starts.get(name[:3], ()), name)
        known = known_numbers(text)
        numerals = (match[1] or match[2] for match in _NUMERAL.finditer(text))
        values = {Decimal(_roman(n.lower())) for n in numerals if n and n != "I"}
        known = replace(known, values=known.values | values)
        months = {n for n, month in enumerate(MONTHS, 1) if month in words or month[:3] in words}
        return cls(
            text,
            known,
            words,
            frozenset(
                [
                    *(form for name in names for form in name_forms(name)),
                    *(form for word in words for form in (f"{word}s", *same_names().get(word, ()))),
                ]
            ),
            frozenset(word.folded.replace(".", "") for word in found if word.all_capital),
            frozenset(a + b for a, b in itertools.pairwise(folded)),
            _initials(found),
            _all_initials(text, found),
            "".join(word[0] for word in folded if word not in SMALL_WORDS),
            frozenset(int(match[1]) for match in _SECTION.finditer(text)),
            frozenset(months),
            starts,
        )

    def has(self, word: Word, named: list[Word], place: int) -> bool:
        """Whether the document holds this name in any form. `named`: the output's names, this at `place`."""
        if word.folded.startswith("#"):
            return word.folded in self.words
        bare = word.folded.replace(".", "").replace("'", "")
        if word.folded in self.words or bare in self.words or bare in self.joined:
            return True
        letters = "".join(c for c in bare if c.isalpha())
        if letters != bare:  # FY2010: fiscal year 2010
            known = all(map(self._has_year_or_number, re.findall(r"\d+", bare)))
            return known and (len(letters) < 2 or self._in_another_form(letters))
        return (
            self._in_another_form(bare)
            or (word.all_capital and self._has_initials(bare.rstrip("s")))
            or (word.all_capital and STATE_NAMES.get(bare) in self.words)
            or STATES.get(bare) in self.acronyms
            or self._spelled(bare)
            or self._abbreviated(named, place)
        )

    def _in_another_form(self, word: str) -> bool:
        if word in self.words or not self.stems.isdisjoint(name_forms(word)):
            return True
        if word in MONTHS and _DATE.search(self.text):
            return Decimal(MONTHS.index(word) + 1) in self.numbers.values
        if not _ROMAN.fullmatch(word):
            return False
        return Decimal(_roman(word)) in self.numbers.values or _roman(word) in self.titles

    def _has_year_or_number(self, digits: str) -> bool:
        number = int(digits)  # FY05: 2005
        century = (1900 + number, 2000 + number) if len(digits) == 2 else ()
        return any(Decimal(n) in self.numbers.values for n in (number, *century))

    def _has_initials(self, acronym: str) -> bool:
        # Two letters are the initials of some two words of any document.
        if acronym in self.initials or (len(acronym) > 2 and self._has_all_initials(acronym)):
            return True
        if len(acronym) > 3 and acronym in self.large_initials:
            return True
        numbered = _NUMBERED.fullmatch(acronym)  # WWII
        return bool(
            numbered
            and numbered[1] in self.initials
            and Decimal(_roman(numbered[2])) in self.numbers.values
        )

    def _has_all_initials(self, acronym: str) -> bool:
        # Neither begins nor ends with a small word: any three letters are somewhere in a long text.
        within = "".join(f"[{c}{c.upper()}]" for c in acronym[1:-1])
        return re.search(f"{acronym[0]}{within}{acronym[-1]}", self.all_initials) is not None

    def _spelled(self, word: str) -> bool:
        near = self.starts.get(word[:3], ())
        if not word.isascii():
            # Case endings of inflecting languages: the last letters differ.
            keep = max(3, len(word) - 3)
            return any(
                other[:keep] == word[:keep] and abs(len(other) - len(word)) < 4 for other in near
            )
        if any(_longer(word, other) or _longer(other, word) for other in near):
            return True
        if any(len(word) > SAME_STEM and other[:SAME_STEM] == word[:SAME_STEM] for other in near):
            return True
        return len(word) >= LEAST_SPELLED and any(
            _one_edit(word, other) for other in near if len(other) >= LEAST_SPELLED
        )

    def _abbreviated(self, named: list[Word], place: int) -> bool:
        """Whether the document has the initials of the names around this one: UN for United Nations."""
        for start in range(max(0, place - 4), place + 1):
            for end in range(max(place + 1, start + 2), min(len(named), start + 6) + 1):
                run = named[start:end]
                together = all(b.start - a.end < 10 for a, b in itertools.pairwise(run))
                if together and "".join(w.folded[0] for w in run) in self.acronyms:
                    return True
        return False


def _roman(numeral: str) -> int:
    values = [{"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}[c] for c in numeral]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


def _initials(words: list[Word]) -> str:
    """Initials of each run of capitalized words, with a blank between runs; short words do not end one."""
    initials, end = list[str](), 0
    for word in words:
        if word.start - end > 3:
            initials.append(" ")
        end = word.end
        if word.capital:
            initials.append(word.folded[0])
        elif len(word.folded) > 3:
            initials.append(" ")
    return "".join(initials)


def _all_initials(text: str, words: list[Word]) -> str:
    """Initials of all words, of small ones as capitals, with a blank where a mark or number is between."""
    initials, end = list[str](), 0
    for word in words:
        if text[end : word.start].strip(" -\r\n"):
            initials.append(" ")
        end = word.end
        initials.append(word.folded[0].upper() if word.folded in SMALL_WORDS else word.folded[0])
    return "".join(initials)


def _longer(short: str, long: str) -> bool:
    return len(short) >= 3 and 0 <= len(long) - len(short) <= 4 and long.startswith(short)


def _one_edit(one: str, other: str) -> bool:
    """Whether one letter more, less, another, or two in another order make them the same."""
    if abs(len(one) - len(other)) > 1:
        return False
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if same is None:
        return True
    a, b = one[same:], other[same:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[:2][::-1] and a[2:] == b[2:])
