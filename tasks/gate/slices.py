"""Gains on parts of the evaluation set: a mean may rise while long documents, one script or one topic lose.

Many slices make many chances to see a loss that is luck, so their bounds hold for all at once (max-T:
Westfall & Young 1993), from one resampling of documents, widened as Student's t is for few documents. A slice
lost is one whose upper bound is below 0. statsmodels' multipletests corrects p-values, and knows no clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tasks.contracts.formatting import changed, listed
from tasks.contracts.metrics import sign
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Guardrail, Prediction, SliceResult
from tasks.contracts.slice_labels import LANGUAGE, LENGTH, MIN_DOCUMENTS, Labels
from tasks.gate.bootstrap import CHUNK_CELLS, expanded_level
from tasks.gate.guardrails import Finding
from tasks.gate.pairs import RESOLUTION
from tasks.gate.slice_members import Rows, members_of

AT_ONCE = 64  # slices whose bounds are computed together, so that a thousand need no more memory
SMALL_NAMED, LOST_NAMED = 10, 20  # slices without bounds that a note names, and lost ones


def slice_results(
    challenger: Sequence[Prediction],
    opponent: Sequence[Prediction],
    cluster: NDArray[np.int64],
    gate: Gate,
    labels: Labels,
) -> tuple[SliceResult, ...]:
    """The gain in gate.metric on each slice of gate.slices, with bounds that hold for all at once.

    `cluster`: of each row, in order of row ids. Slices of fewer than MIN_DOCUMENTS documents have no bounds.
    Raises EvaluationError where a row lacks a label that gate.slices needs.
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
    members = members_of(gate.slices, ours, labels)
    documents = {key: len(np.unique(cluster[rows])) for key, rows in members.items()}
    large = [key for key, count in documents.items() if count >= MIN_DOCUMENTS]
    bounds = _bounds(gains, [members[key] for key in large], cluster, gate) if large else []
    found = dict(zip(large, bounds, strict=True))
    return tuple(
        SliceResult(
            by=by,
            value=value,
            rows=len(rows),
            documents=documents[by, value],
            gain=math.fsum(gains[rows]) / len(rows),
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
    return [Finding(guardrail, "; ".join(_losses(losses, gate)))]


def slice_notes(results: Sequence[SliceResult], gate: Gate) -> list[str]:
    """Slices that are lost, where they do not veto, and those too small to tell."""
    losses = lost(results) if gate.slice_loss == "report" else []
    return [*_losses(losses, gate), *small_note(results)]


def small_note(results: Sequence[SliceResult]) -> list[str]:
    """Slices too small to tell, as a note; it depends on no score."""
    return about_small({(o.by, o.value): o.documents for o in results if o.high is None})


def about_small(documents: Mapping[tuple[str, str], int]) -> list[str]:
    """The note on these slices, of so many documents each; nothing without any."""
    small = [f"{_title(by, value)} ({count})" for (by, value), count in documents.items()]
    told = f"slices of fewer than {MIN_DOCUMENTS} documents have no bounds: {listed(small, SMALL_NAMED)}"
    return [told] if small else []


def _losses(losses: Sequence[SliceResult], gate: Gate) -> list[str]:
    # A reason stands in a tag, which holds so much.
    more = len(losses) - LOST_NAMED
    told = [_loss(one, gate) for one in losses[:LOST_NAMED]]
    return [*told, f"worse on {more} more slices"] if more > 0 else told


def _loss(one: SliceResult, gate: Gate) -> str:
    return (
        f"worse on the slice {_title(one.by, one.value)}, by more than noise: "
        f"{changed(gate.metric, one.gain)} on {one.documents} documents"
    )


def _title(by: str, value: str) -> str:
    """A slice in a sentence; a value that is a text of the data stands as code, so that it is no Markdown."""
    return f"{by} {value}" if by in (LENGTH, LANGUAGE) else f"{by} `{value.replace('`', chr(39))}`"


def _blocks(members: Sequence[Rows]) -> list[Sequence[Rows]]:
    return [members[start : start + AT_ONCE] for start in range(0, len(members), AT_ONCE)]


def _bounds(
    gains: NDArray[np.float64],
    members: Sequence[Rows],
    cluster: NDArray[np.int64],
    gate: Gate,
) -> list[tuple[float, float]]:
    blocks = [_resampled(gains, block, cluster, gate) for block in _blocks(members)]
    above, below = (np.max([block.largest[side] for block in blocks], axis=0) for side in (0, 1))
    place = min(math.ceil((1 - gate.alpha) * (len(above) + 1)), len(above)) - 1
    above, below = np.sort(above)[place], np.sort(below)[place]
    bounds = []
    for block in blocks:
        for mean, error, count in zip(block.means, block.errors, block.documents, strict=True):
            wide = error * _widening(gate.alpha / len(members), count)
            bounds.append((float(mean - above * wide), float(mean + below * wide)))
    return bounds


@dataclass(frozen=True)
class _Resampled:
    """Of some slices: mean gains, standard errors and documents of each.

    `largest`: of each sample the largest studentized deviation above and below, over these slices.
    """

    means: NDArray[np.float64]
    errors: NDArray[np.float64]
    documents: list[int]
    largest: tuple[NDArray[np.float64], NDArray[np.float64]]


def _resampled(
    gains: NDArray[np.float64],
    members: Sequence[Rows],
    cluster: NDArray[np.int64],
    gate: Gate,
) -> _Resampled:
    masks = np.zeros((len(members), len(gains)))
    for mask, rows in zip(masks, members, strict=True):
        mask[rows] = 1.0
    sums = _by_cluster([gains * mask for mask in masks], cluster)
    counts = _by_cluster(list(masks), cluster)
    means = sums.sum(axis=0) / counts.sum(axis=0)
    off = _drawn(sums, counts, gate) - means
    # Exactly rounded sums, so that every machine has the same bits.
    errors = np.array([math.sqrt(math.fsum(o * o) / len(o)) for o in off.T])
    scaled = off / np.where(errors > 0, errors, 1.0)
    documents = [int((count > 0).sum()) for count in counts.T]
    return _Resampled(means, errors, documents, (scaled.max(axis=1), (-scaled).max(axis=1)))


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
