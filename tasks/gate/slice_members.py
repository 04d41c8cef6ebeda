"""Which evaluation rows are in which slice: by their labels, or by what their documents are."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.contracts.documents import plain_text
from tasks.contracts.errors import EvaluationError
from tasks.contracts.records import Prediction, Row
from tasks.contracts.slice_labels import LABELS, LANGUAGE, LENGTH, MIN_DOCUMENTS, Labels
from tasks.contracts.words import words

LETTERS_READ = 2000  # of a document, for its script
THIRDS = ("short", "medium", "long")
Rows = NDArray[np.int64]  # places of a slice's rows
Members = dict[tuple[str, str], Rows]


def members_of(slices: Sequence[str], rows: Sequence[Row | Prediction], labels: Labels) -> Members:
    """The places of each slice's rows, by name and value; a row with several values is in each slice."""
    members: dict[tuple[str, str], list[int]] = {}
    for by in slices:
        found: dict[str, list[int]] = {}
        for place, values in enumerate(_values(by, rows, labels)):
            for value in values:
                found.setdefault(value, []).append(place)
        members |= {(by, value): found[value] for value in sorted(found)}
    return {key: np.array(places, dtype=np.int64) for key, places in members.items()}


def small_slices(
    slices: Sequence[str],
    rows: Sequence[Row | Prediction],
    cluster: Sequence[int],
    labels: Labels,
) -> dict[tuple[str, str], int]:
    """Slices of these rows with too few documents for a bound, and how many; `cluster`: of each row."""
    numbers = np.array(cluster, dtype=np.int64)
    members = members_of(slices, rows, labels)
    documents = {key: len(np.unique(numbers[places])) for key, places in members.items()}
    return {key: count for key, count in documents.items() if count < MIN_DOCUMENTS}


def _values(by: str, rows: Sequence[Row | Prediction], labels: Labels) -> list[tuple[str, ...]]:
    if by not in (LENGTH, LANGUAGE):
        return _labels(by, rows, labels)
    texts = [plain_text(row.document) for row in rows]
    if by == LANGUAGE:
        return [(script_of(text),) for text in texts]
    lengths = [len(words(text)) for text in texts]
    ordered = sorted(lengths)
    ends = [ordered[(third * len(ordered) - 1) // 3] for third in (1, 2)]
    return [(THIRDS[sum(length > end for end in ends)],) for length in lengths]


def _labels(by: str, rows: Sequence[Row | Prediction], labels: Labels) -> list[tuple[str, ...]]:
    known = labels.get(by, {})
    if missing := [row.id for row in rows if not known.get(row.id)]:
        raise EvaluationError(
            f"gate.slices names {by}, and {LABELS} has no {by} of {len(missing)} rows, such as "
            f"{missing[0]!r}; fetch the folder again"
        )
    return [known[row.id] for row in rows]


def script_of(text: str) -> str:
    """The script of most of a text's letters, as Unicode names it: latin, cyrillic, cjk, arabic."""
    letters = [character for character in text[: 4 * LETTERS_READ] if character.isalpha()]
    scripts = Counter(map(_script, letters[:LETTERS_READ]))
    if scripts["hiragana"] + scripts["katakana"] > 0.1 * scripts.total():
        return "japanese"
    return min(scripts, key=lambda script: (-scripts[script], script), default="none")


@functools.lru_cache(maxsize=1 << 14)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "other").split()[0].lower()
