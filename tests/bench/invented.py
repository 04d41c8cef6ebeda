"""How many planted numbers and names are found, and how many references are flagged as they stand.

    python tests/bench/invented.py ../shared/data/dialogsum/dev.jsonl dialogue summary
    python tests/bench/invented.py ../shared/data/billsum/us_train_100.jsonl text summary

A planted one replaces a number or a name of a reference by another of the same kind that this document does
not hold.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tasks.contracts.name_forms import TITLES
from tasks.contracts.unsupported import Span, Support, Usage, unsupported

NUMBER = re.compile(r"(?<![\w#.,:/(])\d[\d,.:]*\d(?![\w#])|(?<![\w#.,:/(])\d(?![\w#)])")
_SPELLED = "four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty sixty ninety"
SPELLED = _SPELLED.split()
VALUES = dict(
    zip(
        SPELLED,
        ["4", "5", "6", "7", "8", "9", "10", "11", "12", "15", "20", "30", "40", "50", "60", "90"],
        strict=True,
    )
)
WORDED = re.compile(rf"\b(?:{'|'.join(SPELLED)})\b")
NAME = re.compile(r"(?<![\w#.'])[A-Z][a-z]+(?![\w#'])")
ACRONYM = re.compile(r"(?<![\w#.'&-])(?![XVI]+\b)[A-Z]{3,6}(?![\w#'&-])")
Rows = list[tuple[str, str]]


def read(path: Path, document: str, reference: str) -> Rows:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row[document], row[reference]) for row in rows]


def flagged(rows: Rows) -> tuple[list[tuple[str, list[Span]]], float]:
    """References with what is flagged in them, and milliseconds a row."""
    usage = Usage.of(text for row in rows for text in row)
    started = time.perf_counter()
    found = [(text, unsupported(text, document, usage)) for document, text in rows]
    seconds = time.perf_counter() - started
    return [(text, spans) for text, spans in found if spans], 1000 * seconds / len(rows)


def planted(rows: Rows, seed: int = 0) -> dict[str, tuple[int, int]]:
    """Of each kind how many planted ones are found, and how many were planted."""
    draw, usage = random.Random(seed), Usage.of(text for row in rows for text in row)
    names = sorted({
        m[0] for document, text in rows for m in NAME.finditer(text)
        if m[0] in document and m[0].lower() not in TITLES
        and not usage.lower[m[0].lower()] and usage.capital[m[0].lower()]
    })  # fmt: skip
    acronyms = sorted({
        m[0] for document, text in rows for m in ACRONYM.finditer(text)
        if m[0] in document and not usage.lower[m[0].lower()]
    }) or ["NATO"]  # fmt: skip
    kinds: dict[str, tuple[re.Pattern[str], Callable[[str], str]]] = {
        "numbers": (NUMBER, lambda old: re.sub(r"\d", lambda _: str(draw.randint(1, 9)), old)),
        "number words": (WORDED, lambda _: draw.choice(SPELLED)),
        "names": (NAME, lambda _: draw.choice(names)),
        "acronyms": (ACRONYM, lambda _: draw.choice(acronyms)),
    }
    counts = {}
    for kind, (pattern, other) in kinds.items():
        found = total = 0
        for document, text in rows:
            support = Support.of(document)
            for match in pattern.finditer(text):
                if kind == "names" and match[0] not in names:
                    continue
                new = other(match[0])
                if kind == "number words" and VALUES[new] in re.findall(r"\d+", document):
                    continue
                if re.search(rf"\b{re.escape(new[:5])}", document, re.IGNORECASE) or new in text:
                    continue
                changed = text[: match.start()] + new + text[match.end() :]
                end = match.start() + len(new)
                spans = unsupported(changed, support, usage)
                hit = any(span.start < end and span.end > match.start() for span in spans)
                found, total = found + hit, total + 1
                if not hit and "-v" in sys.argv:
                    print(
                        kind,
                        repr(new),
                        "for",
                        match[0],
                        "|",
                        changed[max(0, match.start() - 30) : end + 20],
                    )
        counts[kind] = found, total
    return counts


def main() -> None:
    rows = read(Path(sys.argv[1]), *sys.argv[2:4])
    found, milliseconds = flagged(rows)
    print(f"{len(found)} of {len(rows)} references flagged, {milliseconds:.1f} ms a row")
    for kind, (hits, total) in planted(rows).items():
        print(f"{kind}: {hits} of {total} planted ones found, {hits / max(1, total):.1%}")


if __name__ == "__main__":
    main()
