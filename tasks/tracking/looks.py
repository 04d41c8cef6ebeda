"""The ledger of looks: how many challengers were judged against one opponent on one set of documents.

It is kept with the model's MLflow experiment, as tags, so deleting runs forgets no look. A set is known by
its documents as they are compared (comparable_text.py), so another order, other ids, a blank, or some rows
less or more make no new set: two are the same set where half the documents of the smaller are in the other.
So every part of a set, and every set that holds it, is the same set. The same challenger on another part
of it is another look all the same: dropping rows and asking again is a further chance.

The count starts again with each champion: a promotion ends one family of tests and starts another.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.contracts.comparable_text import comparable_words

SAME_SET = 0.5  # share of the smaller set's documents that are in the other
# All documents are stored, so that ten of ten thousand are found again. Of sets of more than this every
# second, fourth, ... document is stored, chosen by its hash, so the same ones in every set.
MAX_STORED = 48_000
PER_TAG = 900  # MLflow's limit for a tag is 5,000 characters, of which a document takes five
HASH_BYTES = (
    4  # one document in 90,000 is taken for one of 48,000 others: too few to matter for a half
)
BEFORE_PARTS = (
    8  # bytes of a hash in the first form of a set, one tag; its last four are today's hash
)
SET, LOOK = "precis.looks.set.", "precis.looks.model."
BASE = "base"  # the opponent before there is a champion, whatever the base


@dataclass(frozen=True)
class EvaluationSet:
    """The documents of an evaluation set: hashes of those that are stored, one in `rate` of them."""

    rate: int
    hashes: frozenset[int]

    @classmethod
    def of(cls, documents: Iterable[str]) -> EvaluationSet:
        """The set of these documents."""
        hashes = {_hash(document) for document in documents}
        rate = 1
        while len(stored := _one_in(rate, hashes)) > MAX_STORED:
            rate *= 2
        return cls(rate, stored)

    def same(self, other: EvaluationSet) -> bool:
        """Whether half the documents of the smaller are in the other."""
        rate = max(self.rate, other.rate)
        ours, theirs = _one_in(rate, self.hashes), _one_in(rate, other.hashes)
        fewest = min(len(ours), len(theirs))
        return fewest > 0 and len(ours & theirs) >= SAME_SET * fewest

    @property
    def name(self) -> str:
        """A digest of its documents, whatever their order."""
        return hashlib.blake2b(b"".join(self._bytes()), digest_size=12).hexdigest()

    def as_texts(self) -> list[str]:
        """As tags hold it, one text a tag."""
        stored = self._bytes()
        parts = [stored[i : i + PER_TAG] for i in range(0, len(stored), PER_TAG)]
        return [
            json.dumps(
                {
                    "rate": self.rate,
                    "parts": len(parts),
                    "documents": base64.b85encode(b"".join(part)).decode(),
                }
            )
            for part in parts
        ]

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> EvaluationSet | None:
        """The set back from `as_texts`, in any order; None where a part is missing."""
        parts = [json.loads(text) for text in texts]
        if not parts or len(parts) != parts[0].get("parts", 1):
            return None
        size = HASH_BYTES if "parts" in parts[0] else BEFORE_PARTS
        hashes: set[int] = set()
        for part in parts:
            stored = base64.b85decode(part["documents"])
            starts = range(size - HASH_BYTES, len(stored), size)
            hashes.update(int.from_bytes(stored[i : i + HASH_BYTES], "big") for i in starts)
        return cls(parts[0]["rate"], frozenset(hashes))

    def _bytes(self) -> list[bytes]:
        return [value.to_bytes(HASH_BYTES, "big") for value in sorted(self.hashes)]


@dataclass(frozen=True)
class Looks:
    """Who was judged on one set and on others that are the same: model digests, one a look.

    `against_opponent`: those that count for the opponent that was asked for; entries of before opponents
    were recorded count for every one.
    """

    against_opponent: list[str]
    all: set[str]


def record_look(
    client: Any,
    experiment_id: str,
    model: str,
    metric: str,
    opponent: str,
    documents: Iterable[str],
) -> Looks:
    """Record that a challenger is judged by a metric against an opponent; again changes nothing.

    `opponent`: the champion's digest, or BASE. All looks at these documents, this one included.
    """
    tags = client.get_experiment(experiment_id).tags
    judged_on = EvaluationSet.of(documents)
    for number, text in enumerate(judged_on.as_texts()):
        key = f"{SET}{judged_on.name}.{number}"
        if key not in tags:
            client.set_experiment_tag(experiment_id, key, text)
    key = f"{LOOK}{judged_on.name}.{model[:24]}.{metric}.{opponent[:24]}"
    client.set_experiment_tag(experiment_id, key, model)
    return _looks(client.get_experiment(experiment_id).tags, judged_on, opponent[:24])


def _looks(tags: dict[str, str], judged_on: EvaluationSet, opponent: str) -> Looks:
    # A set's first form stands under another name, so sets are told apart by what is in them.
    same = {name: other.name for name, other in _sets(tags) if judged_on.same(other)}
    against, every = {}, set()
    for key, model in tags.items():
        name, _, look = key.removeprefix(LOOK).partition(".")
        if key.startswith(LOOK) and name in same:
            every.add(model)
            challenger, _, its_opponent = look.rpartition(".")
            if "." not in challenger:  # challenger and metric: no opponent was recorded
                against[same[name], look] = model
            elif its_opponent == opponent:
                against[same[name], challenger] = model
    return Looks(list(against.values()), every)


def _sets(tags: dict[str, str]) -> Iterator[tuple[str, EvaluationSet]]:
    texts: dict[str, list[str]] = {}
    for key, text in tags.items():
        if key.startswith(SET):
            texts.setdefault(key.removeprefix(SET).partition(".")[0], []).append(text)
    for name, parts in texts.items():
        if stored := EvaluationSet.from_texts(parts):
            yield name, stored


def _hash(document: str) -> int:
    words = " ".join(comparable_words(document)) or document
    whole = hashlib.blake2b(words.encode(), digest_size=BEFORE_PARTS).digest()
    return int.from_bytes(whole[-HASH_BYTES:], "big")


def _one_in(rate: int, hashes: Iterable[int]) -> frozenset[int]:
    return frozenset(value for value in hashes if value % rate == 0)
