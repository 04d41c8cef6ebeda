"""Training documents that are, or nearly are, evaluation documents.

Similarity is the Jaccard index of the sets of word 5-grams. MinHash with locality-sensitive hashing
(Broder 1997; hashes by datasketch) proposes pairs, and each is then compared exactly.

Considered: datasketch's MinHashLSH, which keeps 9.4 kB an evaluation document in dictionaries (2.9 kB here,
in sorted arrays) and with its own bands proposes 40% of the pairs at the threshold (99.9% here). text-dedup
removes duplicates within one set; this compares two.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.contracts.errors import RecipeError

SHINGLE_WORDS = 5
PERMUTATIONS = 128
BLOCK = 4096  # shingles hashed at a time: each takes all permutations at once in memory
# The chance of proposing a pair right at the threshold; datasketch's own choice of bands weighs
# both kinds of error alike and proposes only 40% of the pairs at 0.8.
LEAST_RECALL = 0.999
# Chinese and Japanese are written without blanks: each character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_FACTORS = [pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(1, SHINGLE_WORDS + 1)]


@functools.lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def shingles(document: str) -> NDArray[np.uint64]:
    """The distinct word 5-grams of a document, as sorted 64-bit hashes; at least one.

    Case, punctuation and white space do not count. A document of fewer words is one shingle.
    """
    words = _WORD.findall(document.casefold()) or document.split() or [""]
    if len(words) < SHINGLE_WORDS:
        return np.array([_hash("\0".join(words))], dtype=np.uint64)
    hashes = np.fromiter(map(_hash, words), dtype=np.uint64, count=len(words))
    count = len(words) - SHINGLE_WORDS + 1
    mixed = np.zeros(count, dtype=np.uint64)
    for place, factor in enumerate(_FACTORS):  # arithmetic modulo 2**64, odd factors: order counts
        mixed += hashes[place : place + count] * np.uint64(factor)
    return _distinct(mixed)


def jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """Shared over all: 1.0 for equal sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def bands(threshold: float) -> tuple[int, int]:
    """The fewest false proposals: bands and rows of the LSH that keep LEAST_RECALL at `threshold`.

    Raises RecipeError for a threshold so low that no bands do.
    """
    for rows in range(PERMUTATIONS // 2, 0, -1):
        count = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** count >= LEAST_RECALL:
            return count, rows
    least = 1 - (1 - LEAST_RECALL) ** (1 / PERMUTATIONS)
    raise RecipeError(
        f"data.near_duplicate_jaccard is {threshold}, and {PERMUTATIONS} hashes find pairs from "
        f"{least:.2f} up; raise it"
    )


@dataclass(frozen=True)
class Match:
    """The evaluation row that a training document is like."""

    id: str
    jaccard: float


class OverlapIndex:
    """Evaluation documents, searched for those that a training document equals or nearly equals.

    About 3 kB a document of 130 words: its shingles, twice, and a key for each band.
    """

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash

        self.threshold = threshold
        self.bands, self.band_rows = bands(threshold)
        self._blank = MinHash(num_perm=PERMUTATIONS, hashfunc=_low_bits)
        self._by_source: dict[str, int] = {}
        self._ids: list[str] = []
        self._shingles: list[NDArray[np.uint64]] = []
        self._keys: list[NDArray[np.uint64]] = []
        self._tables: _Tables | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, source: str, id_: str, document: str) -> None:
        """Add an evaluation row; a source that was added before changes nothing."""
        if source in self._by_source:
            return
        self._by_source[source] = len(self._ids)
        self._ids.append(id_)
        of_document = shingles(document)
        self._shingles.append(of_document)
        self._keys.append(self._keys_of(of_document))
        self._tables = None

    def exact(self, source: str) -> str | None:
        """The id of the evaluation row with this very document."""
        number = self._by_source.get(source)
        return None if number is None else self._ids[number]

    def near(self, document: str, any_will_do: bool = False) -> Match | None:
        """The most similar evaluation row at or over the threshold, or with `any_will_do` the first.

        Where many documents are near duplicates of each other, looking for the most similar one
        takes time in the square of their number.
        """
        if not self._ids:
            return None
        tables, of_document = self._built_tables(), shingles(document)
        # A set at least t-similar to one of them shares at least t of itself with their union:
        # almost no document does, and the others need no MinHash.
        if not tables.shared(of_document) >= self.threshold * len(of_document):
            return None
        best = None
        for number in tables.proposed(self._keys_of(of_document)):
            match = Match(self._ids[number], jaccard(of_document, self._shingles[number]))
            if match.jaccard >= self.threshold and (not best or match.jaccard > best.jaccard):
                best = match
                if any_will_do:
                    break
        return best

    def _built_tables(self) -> _Tables:
        if self._tables is None:
            self._tables = _Tables.of(self._shingles, self._keys)
        return self._tables

    def _keys_of(self, of_document: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """For each band one number, a hash of its MinHash values and of the band's number."""
        minhash = self._blank.copy()
        for start in range(0, len(of_document), BLOCK):
            minhash.update_batch(of_document[start : start + BLOCK].tolist())
        used = minhash.hashvalues[: self.bands * self.band_rows].reshape(self.bands, -1)
        keys = np.arange(self.bands, dtype=np.uint64)
        for row in used.astype(np.uint64).T:  # arithmetic modulo 2**64
            keys = (keys + row) * np.uint64(_FACTORS[0])
        return keys


@dataclass(frozen=True)
class _Tables:
    """The search tables: arrays, since dictionaries would take forty times the memory."""

    shingles: NDArray[np.uint64]  # of all documents, distinct, sorted
    keys: NDArray[np.uint64]  # of all bands and documents, sorted
    documents: NDArray[np.uint32]  # whose key each is

    @classmethod
    def of(cls, shingle_sets: list[NDArray[np.uint64]], keys: list[NDArray[np.uint64]]) -> _Tables:
        every = np.concatenate(keys)
        order = np.argsort(every, kind="stable")
        documents = (order // len(keys[0])).astype(np.uint32)
        return cls(_distinct(np.concatenate(shingle_sets)), every[order], documents)

    def shared(self, of_document: NDArray[np.uint64]) -> int:
        """How many of these shingles any document has."""
        at = np.searchsorted(self.shingles, of_document)
        nearest = self.shingles[np.minimum(at, len(self.shingles) - 1)]
        return int(np.count_nonzero(nearest == of_document))

    def proposed(self, keys: NDArray[np.uint64]) -> list[int]:
        """Numbers of the documents that agree in a band, in the order in which they were added."""
        first, last = (np.searchsorted(self.keys, keys, side) for side in ("left", "right"))
        parts = [self.documents[a:b] for a, b in zip(first, last, strict=True)]
        return [int(number) for number in np.unique(np.concatenate(parts))]


def _distinct(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The distinct values, sorted. Sorts `values` in place: np.unique hashes, at 50 bytes a value."""
    values.sort()
    return values[np.concatenate(([True], values[1:] != values[:-1]))]


def _low_bits(value: int) -> int:
    return value & 0xFFFFFFFF
