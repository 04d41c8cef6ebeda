"""Gains on parts of the evaluation set: a mean may rise while long documents, or one script, lose.

Many slices make many chances to see a loss that is luck, so their bounds hold for all at once (max-T:
Westfall & Young 1993), from one resampling of documents, widened as Student's t is for few documents. A slice
lost is one whose upper bound is below 0. statsmodels' multipletests corrects p-values, and knows no clusters.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tasks.contracts.documents import plain_text
from tasks.contracts.formatting import changed
from tasks.contracts.metrics import sign
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Guardrail, Prediction, SliceResult
from tasks.contracts.words import words
from tasks.gate.bootstrap import CHUNK_CELLS, MIN_EVIDENCE, expanded_level
from tasks.gate.guardrails import Finding
from tasks.gate.pairs import RESOLUTION

LETTERS_READ = 2000  # of a document, for its script
THIRDS = ("short", "medium", "long")


def slice_results(
    challenger: Sequence[Prediction],
    opponent: Sequence[Prediction],
    cluster: NDArray[np.int64],
    gate: Gate,
) -> tuple[SliceResult, ...]:
    """The gain in gate.metric on each slice of gate.slices, with bounds that hold for all at once.

    `cluster`: of each row, in order of row ids. Slices of fewer than MIN_EVIDENCE documents have no bounds.
    """
    if not gate.slices:
        return ()
    ours, theirs = (sorted(rows, key=lambda row: row.id) for rows in (challenger, opponent))
    metric = gate.metric
    gains = np.array(
        [
            sign(metric) * (a.scores[metric] - b.scores[metric])
            for a, b in zip(ours, theirs, strict=True)
        ]
    )
    gains = np.round(gains / RESOLUTION) * RESOLUTION
    members = {
        (by, value): np.array([one == value for one in values])
        for by in gate.slices
        for values in [_values(by, ours)]
        for value in dict.fromkeys(sorted(values))
    }
    documents = {key: len(np.unique(cluster[rows])) for key, rows in members.items()}
    large = [key for key, count in documents.items() if count >= MIN_EVIDENCE]
    bounds = _bounds(gains, [members[key] for key in large], cluster, gate) if large else []
    found = dict(zip(large, bounds, strict=True))
    return tuple(
        SliceResult(
            by=by,
            value=value,
            rows=int(rows.sum()),
            documents=documents[by, value],
            gain=math.fsum(gains[rows]) / int(rows.sum()),
            low=found[by, value][0] if (by, value) in found else None,
            high=found[by, value][1] if (by, value) in found else None,
        )
        for (by, value), rows in members.items()
    )


def lost(results: Sequence[SliceResult]) -> list[SliceResult]:
    """Slices on which the challenger is worse by more than noise."""
    return [one for one in results if one.high is not None and one.high < 0]


def slice_findings(results: Sequence[SliceResult], gate: Gate) -> list[Finding]:
    """The guardrail of gate.slice_loss veto; proven losses alone break it."""
    if not results or gate.slice_loss != "veto":
        return []
    losses = lost(results)
    guardrail = Guardrail("slices_lost", float(len(losses)), "<= 0", not losses)
    return [Finding(guardrail, "; ".join(_loss(one, gate) for one in losses))]


def slice_notes(results: Sequence[SliceResult], gate: Gate) -> list[str]:
    """Slices that are lost, where they do not veto, and those too small to tell."""
    losses = lost(results) if gate.slice_loss == "report" else []
    small = [f"{one.by} {one.value} ({one.documents})" for one in results if one.high is None]
    told = f"slices of fewer than {MIN_EVIDENCE} documents have no bounds: {', '.join(small)}"
    return [*(_loss(one, gate) for one in losses), *([told] if small else [])]


def _loss(one: SliceResult, gate: Gate) -> str:
    return (
        f"worse on the slice {one.by} {one.value}, by more than noise: "
        f"{changed(gate.metric, one.gain)} on {one.documents} documents"
    )


def _bounds(
    gains: NDArray[np.float64],
    members: Sequence[NDArray[np.bool_]],
    cluster: NDArray[np.int64],
    gate: Gate,
) -> list[tuple[float, float]]:
    sums = _by_cluster([gains * rows for rows in members], cluster)
    counts = _by_cluster([rows.astype(np.float64) for rows in members], cluster)
    means = sums.sum(axis=0) / counts.sum(axis=0)
    off = _drawn(sums, counts, gate) - means
    # Exactly rounded sums, so that every machine has the same bits.
    errors = np.array([math.sqrt(math.fsum(o * o) / len(o)) for o in off.T])
    scaled = off / np.where(errors > 0, errors, 1.0)
    place = min(math.ceil((1 - gate.alpha) * (len(scaled) + 1)), len(scaled)) - 1
    above, below = np.sort(scaled.max(axis=1))[place], np.sort((-scaled).max(axis=1))[place]
    errors *= [_widening(gate.alpha / len(members), int((c > 0).sum())) for c in counts.T]
    return [
        (float(mean - above * error), float(mean + below * error))
        for mean, error in zip(means, errors, strict=True)
    ]


def _widening(alpha: float, documents: int) -> float:
    """How much farther Student's t puts a bound on so few documents than their resampling does."""
    normal = NormalDist()
    return normal.inv_cdf(expanded_level(alpha, documents)) / normal.inv_cdf(alpha)


def _by_cluster(
    columns: Sequence[NDArray[np.float64]], cluster: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Sums over each cluster's rows: float64, clusters by columns."""
    sums = [np.bincount(cluster, weights=column) for column in columns]
    return np.column_stack(sums).astype(np.float64)


def _drawn(
    sums: NDArray[np.float64], counts: NDArray[np.float64], gate: Gate
) -> NDArray[np.float64]:
    """Mean gains of resampled documents: float64, samples by slices."""
    generator, size = np.random.Generator(np.random.PCG64(gate.seed)), len(sums)
    step = max(1, CHUNK_CELLS // size)
    chunks = []
    for done in range(0, gate.bootstrap_samples, step):
        count = min(step, gate.bootstrap_samples - done)
        drawn = generator.integers(size, size=(count, size)) + np.arange(count)[:, None] * size
        times = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        chunks.append((times @ sums) / np.maximum(times @ counts, 1.0))
    return np.concatenate(chunks)


def _values(by: str, rows: Sequence[Prediction]) -> list[str]:
    texts = [plain_text(row.document) for row in rows]
    if by == "language":
        return [script_of(text) for text in texts]
    lengths = [len(words(text)) for text in texts]
    ordered = sorted(lengths)
    ends = [ordered[(third * len(ordered) - 1) // 3] for third in (1, 2)]
    return [THIRDS[sum(length > end for end in ends)] for length in lengths]


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
