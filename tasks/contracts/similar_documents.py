"""Documents that are nearly the same, hold one another, or are parts of one another.

Ingest drops training documents that are like evaluation documents; the gate takes evaluation documents that
are like each other for one piece of evidence. Documents are compared by their sets of word 5-grams, of texts
without what a disguise changes (comparable_text.py): by similarity (Jaccard index) and by containment
(the share of one document's 5-grams that the other has, either way). The search is exact, an inverted
index of all 5-grams, but for documents of boilerplate with more than MAX_MATCHES matches.

Considered: datasketch's MinHashLSH and MinHashLSHEnsemble, which estimate, keep 9.4 kB an evaluation document
in dictionaries (1.5 kB here, of a dialogue 3, in sorted arrays), and search for either measure alone.
text-dedup removes duplicates within one set; this compares two.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.contracts.comparable_text import comparable_words

SHINGLE_WORDS = 5
# Half of a short document may be common phrases ("how are you doing today"): of one with fewer 5-grams than
# LEAST_CONTAINED nearly all must be in the other, and with fewer than LEAST_PART containment says nothing.
LEAST_CONTAINED, LEAST_PART, SHORT_SHARE = 20, 8, 0.9
# More matches than this are not all counted: 5-grams that so many evaluation documents have are boilerplate.
MAX_MATCHES = 500_000
RARE_SHINGLES = 64  # a document's rarest, by which others like it are then proposed
_FACTORS = [pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(1, SHINGLE_WORDS + 1)]


@functools.lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def forms(document: str) -> list[NDArray[np.uint64]]:
    """The shingles of a document without the names of speakers, and where it has such, also with them.

    A copy without punctuation shows no longer which words are names.
    """
    without, with_names = (comparable_words(document, speakers) for speakers in (False, True))
    several = [without] if without == with_names else [without, with_names]
    return [shingles(words or document.split() or [""]) for words in several]


def shingles(words: list[str]) -> NDArray[np.uint64]:
    """The distinct word 5-grams, as sorted 64-bit hashes; fewer words are one shingle."""
    if len(words) < SHINGLE_WORDS:
        return np.array([_hash("\0".join(words))], dtype=np.uint64)
    hashes = np.fromiter(map(_hash, words), dtype=np.uint64, count=len(words))
    count = len(words) - SHINGLE_WORDS + 1
    mixed = np.zeros(count, dtype=np.uint64)
    for place, factor in enumerate(_FACTORS):  # arithmetic modulo 2**64, odd factors: order counts
        mixed += hashes[place : place + count] * np.uint64(factor)
    return _distinct(mixed)


@dataclass(frozen=True)
class Match:
    """The evaluation row that a training document is like, and how much."""

    id: str
    jaccard: float  # shared 5-grams over all of both
    of_evaluation: float  # share of the evaluation document's 5-grams in the training document
    of_training: float  # and the other way round

    @property
    def kind(self) -> str:
        """How the training document is like it: the measure that is largest; similar where both are."""
        if self.of_evaluation > 2 * self.of_training:
            return "holds"
        return "part" if self.of_training > 2 * self.of_evaluation else "similar"


class DocumentIndex:
    """Evaluation documents, searched for those that a training document equals, resembles or holds.

    About 12 bytes a word of the evaluation documents, of dialogues 24.
    """

    def __init__(self, jaccard: float, containment: float) -> None:
        """`jaccard`: least similarity, `containment`: least share of either, that count as a match."""
        self.jaccard, self.containment = jaccard, containment
        self._by_source: dict[str, int] = {}
        self._ids: list[str] = []
        self._shingles: list[NDArray[np.uint64]] = []  # of all forms of all documents
        self._number_of: list[int] = []  # the document of each form
        self._table: _Table | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, source: str, id_: str, document: str) -> None:
        """Add an evaluation row; a source that was added before changes nothing.

        Raises ValueError after the first search: what is searched is built once.
        """
        if self._table is not None:
            raise ValueError("rows are added before the first search")
        if source in self._by_source:
            return
        number = self._by_source[source] = len(self._ids)
        self._ids.append(id_)
        for of_form in forms(document):
            self._shingles.append(of_form)
            self._number_of.append(number)

    def exact(self, source: str) -> str | None:
        """The id of the evaluation row with this very document."""
        number = self._by_source.get(source)
        return None if number is None else self._ids[number]

    def near(self, document: str) -> Match | None:
        """The document that this one is most like, if it is like any: by the larger measure."""
        found = [self._matches(of_form) for of_form in self._searched(document)]
        best = [matches.best() for matches in found if len(matches.numbers)]
        if not best:
            return None
        number, *measures = max(best, key=lambda match: max(match[2:]) + match[1])
        return Match(self._ids[self._number_of[number]], *measures)

    def alike(self, document: str) -> set[str]:
        """The ids of all documents that this one is like."""
        numbers = [self._matches(of_form).numbers for of_form in self._searched(document)]
        return {self._ids[self._number_of[n]] for of_form in numbers for n in of_form.tolist()}

    def _searched(self, document: str) -> list[NDArray[np.uint64]]:
        """The document's forms, once there is something to search; an empty index has nothing."""
        if not self._ids:
            return []
        if self._table is None:
            self._table = _Table.of(self._shingles)
            self._shingles.clear()  # the table holds them
        return forms(document)

    def _matches(self, of_document: NDArray[np.uint64]) -> _Matches:
        assert self._table is not None
        numbers, shared = self._table.shared(of_document)
        sizes, own = self._table.sizes[numbers], len(of_document)
        similarity, of_theirs, of_ours = (
            shared / (sizes + own - shared),
            shared / sizes,
            shared / own,
        )
        alike = similarity >= self.jaccard
        alike |= of_theirs >= self._least_share(sizes)
        alike |= of_ours >= self._least_share(np.array(own))
        return _Matches(numbers[alike], similarity[alike], of_theirs[alike], of_ours[alike])

    def _least_share(self, size: NDArray[np.int64]) -> NDArray[np.float64]:
        """The share of a document of `size` 5-grams that must be in the other."""
        of_short = np.where(size >= LEAST_PART, max(self.containment, SHORT_SHARE), np.inf)
        return np.where(size >= LEAST_CONTAINED, self.containment, of_short)


@dataclass(frozen=True)
class _Matches:
    """Forms of documents that a document is like, with the measures of each."""

    numbers: NDArray[np.int64]
    jaccard: NDArray[np.float64]
    of_theirs: NDArray[np.float64]
    of_ours: NDArray[np.float64]

    def best(self) -> tuple[int, float, float, float]:
        """Number and measures of the one that it is most like. There must be one."""
        i = int(np.argmax(np.maximum(self.of_theirs, self.of_ours) + self.jaccard))
        jaccard, of_theirs, of_ours = (
            float(measure[i]) for measure in (self.jaccard, self.of_theirs, self.of_ours)
        )
        return int(self.numbers[i]), jaccard, of_theirs, of_ours


@dataclass(frozen=True)
class _Table:
    """The inverted index: arrays, since dictionaries would take forty times the memory."""

    shingles: NDArray[np.uint64]  # of all documents, sorted
    documents: NDArray[np.uint32]  # whose each is
    sizes: NDArray[np.int64]  # distinct shingles of each document

    @classmethod
    def of(cls, shingle_sets: list[NDArray[np.uint64]]) -> _Table:
        sizes = np.array([len(one_set) for one_set in shingle_sets], dtype=np.int64)
        every = np.concatenate(shingle_sets)
        order = np.argsort(every, kind="stable")
        owners = np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes)
        return cls(every[order], owners[order], sizes)

    def shared(
        self, of_document: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of the documents that share shingles with this one, and how many each shares."""
        first = np.searchsorted(self.shingles, of_document, "left")
        counts = np.searchsorted(self.shingles, of_document, "right") - first
        if counts.sum() > MAX_MATCHES:
            return self._shared_with_proposed(of_document, first, counts)
        return np.unique(self._owners(first, counts), return_counts=True)

    def _owners(self, first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The documents of all matches: for each shingle `counts` entries from `first` on."""
        ends = np.cumsum(counts)
        within = np.arange(int(ends[-1])) - np.repeat(ends - counts, counts)
        owners: NDArray[np.uint32] = self.documents[np.repeat(first, counts) + within]
        return owners

    def _shared_with_proposed(
        self,
        of_document: NDArray[np.uint64],
        first: NDArray[np.int64],
        counts: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `shared`, for the documents that share one of the rarest shingles."""
        common = np.flatnonzero(counts)
        rarest = common[np.argsort(counts[common], kind="stable")[:RARE_SHINGLES]]
        budget = max(1, int(np.searchsorted(np.cumsum(counts[rarest]), MAX_MATCHES)))
        proposed = np.unique(self._owners(first[rarest[:budget]], counts[rarest[:budget]]))
        shared = np.zeros(len(self.sizes), dtype=np.int64)
        for start, count in zip(first.tolist(), counts.tolist(), strict=True):
            shared[self.documents[start : start + count]] += 1
        return proposed.astype(np.int64), shared[proposed]


def _distinct(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The distinct values, sorted. Sorts `values` in place: np.unique hashes, at 50 bytes a value."""
    values.sort()
    return values[np.concatenate(([True], values[1:] != values[:-1]))]
