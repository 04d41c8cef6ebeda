"""A paired cluster bootstrap: how far each metric's gain could be off by the choice of documents.

Documents are drawn with replacement, each with all its rows, and the mean gain over rows is taken
again; all metrics share the draws (Efron & Tibshirani 1993, chapters 6 and 8; Koehn 2004 for
comparing two systems on one test set).

Considered: scipy.stats.bootstrap (percentile, basic and BCa; no clusters) and arch.bootstrap (adds
block bootstraps of time series and studentized intervals; none of clusters of several rows). Neither has
the expanded percentile below, and neither promises the same bits on every machine.

Of the bounds that can be read from such draws this uses the expanded percentile (Hesterberg 2015, "What
Teachers Should Know About the Bootstrap", arXiv:1411.5279). The plain percentile is too narrow on
few documents, by sqrt((n-1)/n) and by a normal's tail in place of Student's t; the expanded one is
read at level Phi(-sqrt(n/(n-1)) t(alpha, n-1)) instead. Chosen by trial (2,500 sets of two equal
models a line; the share promoted, which should be alpha):

    scores like ROUGE            percentile  expanded  BCa    bootstrap-t
    20 documents, alpha 0.05     0.064       0.052     0.063  0.050
    20 documents, alpha 0.0025   0.008       0.002     0.009  0.004
    200 documents, alpha 0.05    0.051       0.050     0.049  0.049
    the same, and outputs differ on one document in ten
    200 documents, alpha 0.05    0.068       0.051     0.086  0.083
    200 documents, alpha 0.0025  0.006       0.001     0.012  0.008

Where a few documents lose much, percentiles are too narrow (skew.py corrects the deciding bound), and no
resampling shows a loss that the set does not contain: where one document in twenty loses 0.4 and the others
gain a little, a set of 20 contains no loss in one case of three. Large sets, and the guardrails on lost,
empty and unfinished outputs, are the answer to that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tasks.gate.earlier_looks import Spent
from tasks.gate.pairs import Pairs

CHUNK_CELLS = 2_000_000  # draws held at once: 32 MB in all
MAX_SAMPLES = 1_000_000
MAX_DRAWS = 2_000_000_000  # about half a minute
# At 20 documents the trial above still holds its level at alpha 0.0025; at 10 it is missed
# four times as often.
MIN_EVIDENCE = 20
TAIL = 20  # resamples beyond the bound, at least: with fewer the bound depends on the seed


@dataclass(frozen=True)
class Resampled:
    """Mean gains of all resamples: float64, samples by metrics, each metric sorted.

    `evidence`: effective number of documents for each metric, see `effective_documents`. `unspent`: as
    `means`, without the resamples that are beyond an earlier look's bound.
    """

    means: NDArray[np.float64]
    evidence: tuple[float, ...]
    unspent: NDArray[np.float64]

    def bounds(self, metric: int, alpha: float) -> tuple[float, float]:
        """One-sided lower and upper bound of the gain, each missed with probability alpha."""
        beyond = self.beyond(metric, alpha)
        means = self.means[:, metric]
        return float(means[beyond]), float(means[-1 - beyond])

    def beyond(self, metric: int, alpha: float) -> int:
        """Resamples below the lower bound; under TAIL it is too rough to decide by."""
        level = expanded_level(alpha, self.evidence[metric])
        return max(math.floor(level * (len(self.means) + 1)) - 1, 0)

    def level_with(self, metric: int, alpha: float, most: float) -> float:
        """The level of a bound that errs with probability alpha where no earlier look errs.

        From alpha, where no resample is spent, to `most`.
        """
        beyond, unspent = self.beyond(metric, alpha), self.unspent[:, metric]
        if beyond >= len(unspent):
            return most
        below = int(np.searchsorted(self.means[:, metric], unspent[beyond]))
        share = (below + 1.5) / (len(self.means) + 1)  # `beyond` of this share is `below`
        if share >= 0.5:
            return most
        return min(max(level_of_expanded(share, self.evidence[metric]), alpha), most)


def resample(
    pairs: Pairs, samples: int, alpha: float, seed: int, spent: Spent | None = None
) -> Resampled:
    """Draw documents with replacement, `samples` times or as often as alpha's tail needs.

    `spent`: by earlier looks at the same rows. The same arguments give the same bits on any machine with
    this numpy: the draws are seeded and the sums exact (see pairs.RESOLUTION). Memory: 32 MB, and 64 bytes
    a resample.
    """
    count = pairs.gains.shape[1]
    evidence = tuple(effective_documents(pairs, metric) for metric in range(count))
    tail = expanded_level(alpha, max(MIN_EVIDENCE, min(evidence)))
    needed = resamples_needed(samples, tail, pairs.clusters)
    if spent is None:
        means = np.sort(draw_means(_cluster_totals(pairs), needed, np.random.PCG64(seed)), axis=0)
        return Resampled(means, evidence, unspent=means)
    totals = _cluster_totals(Pairs(np.column_stack([pairs.gains, spent.gains]), pairs.cluster))
    chunks, unspent = [], []
    for drawn in _drawn(totals, needed, np.random.PCG64(seed)):
        own = drawn[:, :count]
        chunks.append(own)
        unspent.append(own[(drawn[:, count:] >= spent.lows).all(axis=1)])
    means = np.sort(np.concatenate(chunks), axis=0)
    return Resampled(means, evidence, unspent=np.sort(np.concatenate(unspent), axis=0))


def effective_documents(pairs: Pairs, metric: int) -> float:
    """Effective number of documents by which this set tells the two models apart (Kish 1965).

    Documents on which both score the same do not count. A document with most of the rows counts for
    little more than one: (sum of sizes)^2 / sum of sizes^2.
    """
    differs = np.zeros(pairs.clusters, dtype=bool)
    differs[pairs.cluster[pairs.gains[:, metric] != 0]] = True
    return effective_clusters(np.bincount(pairs.cluster)[differs])


def effective_clusters(sizes: NDArray[np.int64]) -> float:
    """How many clusters of equal size carry as much information as these sizes (Kish 1965)."""
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def expanded_level(alpha: float, evidence: float) -> float:
    """The level at which to read the percentile so that the bound is missed with alpha."""
    n = max(evidence, 2.0)
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_t_quantile(1 - alpha, n - 1))


def level_of_expanded(share: float, evidence: float) -> float:
    """The alpha whose expanded level is this share: the inverse of `expanded_level`."""
    from scipy.special import stdtr  # type: ignore[import-untyped]  # scipy ships no types

    n = max(evidence, 2.0)
    return float(stdtr(n - 1, NormalDist().inv_cdf(share) / math.sqrt(n / (n - 1))))


def student_t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def resamples_needed(samples: int, level: float, clusters: int) -> int:
    """Resamples to draw: `samples`, or as many as leave TAIL beyond `level`, within the limits."""
    for_tail = math.ceil((TAIL + 1) / max(level, 1e-12))
    return max(samples, min(for_tail, MAX_SAMPLES, MAX_DRAWS // clusters))


def _cluster_totals(pairs: Pairs) -> NDArray[np.float64]:
    """Float64, clusters by (metrics and, last, number of rows)."""
    columns = [np.bincount(pairs.cluster, weights=gain) for gain in pairs.gains.T]
    return np.column_stack([*columns, np.bincount(pairs.cluster)])


def draw_means(
    totals: NDArray[np.float64], count: int, bits: np.random.BitGenerator
) -> NDArray[np.float64]:
    """Means of `count` resamples of clusters: float64, count by metrics, in the order drawn.

    `totals`: float64, clusters by (sums of metrics and, last, number of rows).
    """
    return np.concatenate(list(_drawn(totals, count, bits)))


def _drawn(
    totals: NDArray[np.float64], count: int, bits: np.random.BitGenerator
) -> Iterator[NDArray[np.float64]]:
    """`draw_means`, some resamples at once."""
    generator = np.random.Generator(bits)
    step = max(1, CHUNK_CELLS // len(totals))
    for done in range(0, count, step):
        yield _draw_chunk(generator, totals, min(step, count - done))


def _draw_chunk(
    generator: np.random.Generator, totals: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """Mean gains of `count` resamples: float64, count by metrics."""
    size = len(totals)
    drawn = generator.integers(size, size=(count, size))
    drawn += np.arange(count)[:, None] * size
    times = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
    sums = times.astype(np.float64) @ totals
    means: NDArray[np.float64] = sums[:, :-1] / sums[:, -1:]
    return means
