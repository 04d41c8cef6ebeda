"""The ledger of looks: how many challengers were judged on one set of evaluation documents.

It is kept with the model's MLflow experiment, as tags, so deleting runs forgets no look. A set is known by
its documents as they are compared (comparable_text.py), so another order, other ids, a blank, or some rows
less or more make no new set: two are the same set where half the documents of either are in the other.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tasks.contracts.comparable_text import comparable_words

SAME_SET = 0.5  # share of either set's documents that are in the other
# MLflow's limit for a tag is 5,000 characters, of which a document takes eleven: of larger sets every
# second, fourth, ... document is stored, chosen by its hash, so the same ones in every set.
MAX_STORED = 400
HASH_BYTES = 8
SET, LOOK = "precis.looks.set.", "precis.looks.model."


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
        """Whether half the documents of either are in the other."""
        rate = max(self.rate, other.rate)
        ours, theirs = _one_in(rate, self.hashes), _one_in(rate, other.hashes)
        fewest = min(len(ours), len(theirs))
        return fewest > 0 and len(ours & theirs) >= SAME_SET * fewest

    def as_text(self) -> str:
        """As a tag holds it."""
        stored = b"".join(value.to_bytes(HASH_BYTES, "big") for value in sorted(self.hashes))
        return json.dumps({"rate": self.rate, "documents": base64.b85encode(stored).decode()})

    @classmethod
    def from_text(cls, text: str) -> EvaluationSet:
        """The set back from `as_text`."""
        values = json.loads(text)
        stored = base64.b85decode(values["documents"])
        starts = range(0, len(stored), HASH_BYTES)
        hashes = (int.from_bytes(stored[i : i + HASH_BYTES], "big") for i in starts)
        return cls(values["rate"], frozenset(hashes))


def record_look(
    client: Any,
    experiment_id: str,
    model: str,
    metric: str,
    rows_digest: str,
    documents: Iterable[str],
) -> None:
    """Record that a challenger is judged by a metric on these documents; again changes nothing."""
    name = rows_digest[:24]
    tags = client.get_experiment(experiment_id).tags
    if SET + name not in tags:
        client.set_experiment_tag(experiment_id, SET + name, EvaluationSet.of(documents).as_text())
    client.set_experiment_tag(experiment_id, f"{LOOK}{name}.{_challenger(model, metric)}", model)


def challengers(client: Any, experiment_id: str, rows_digest: str) -> dict[str, str]:
    """Who was judged on the documents of a recorded set: model digests by challenger and metric."""
    tags = client.get_experiment(experiment_id).tags
    own = EvaluationSet.from_text(tags[SET + rows_digest[:24]])
    same = {name for name, other in _sets(tags) if own.same(other)}
    looks = {}
    for key, model in tags.items():
        name, _, challenger = key.removeprefix(LOOK).partition(".")
        if key.startswith(LOOK) and name in same:
            looks[challenger] = model
    return looks


def _sets(tags: dict[str, str]) -> Iterator[tuple[str, EvaluationSet]]:
    for key, text in tags.items():
        if key.startswith(SET):
            yield key.removeprefix(SET), EvaluationSet.from_text(text)


def _challenger(model: str, metric: str) -> str:
    """One challenger judged by two metrics has had two chances."""
    return f"{model[:24]}.{metric}"


def _hash(document: str) -> int:
    words = " ".join(comparable_words(document)) or document
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=HASH_BYTES).digest(), "big")


def _one_in(rate: int, hashes: Iterable[int]) -> frozenset[int]:
    return frozenset(value for value in hashes if value % rate == 0)
