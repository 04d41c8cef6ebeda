"""A lower bound that is lower where a few documents lose much: percentiles alone follow skew too slowly.

Johnson's correction of Student's t for skew (1978, "Modified t Tests and Confidence Intervals for
Asymmetrical Populations"; Hall 1992). scipy.stats has no interval for a mean with such a correction but BCa,
which was worse in the trial (tests/gate/bounds_study.py): where outputs differ on one document in ten it
promoted equal models twice as often as it should.
"""

from __future__ import annotations

import math

import numpy as np

from tasks.gate.bootstrap import student_t_quantile
from tasks.gate.pairs import Pairs


def skewed_low(pairs: Pairs, metric: int, error: float, alpha: float, low: float) -> float:
    """`low`, a lower bound of the mean gain, or the corrected one where gains have a tail of losses.

    `error`: standard error of the mean gain over rows. Clusters move together; sums are exact.
    """
    skew = _skew(pairs, metric)
    if error == 0 or skew >= 0:
        return low
    mean = math.fsum(pairs.gains[:, metric]) / pairs.rows
    t = student_t_quantile(1 - alpha, pairs.clusters - 1)
    wider = t - skew * (1 + 2 * t * t) / (6 * math.sqrt(pairs.clusters))
    return min(low, mean - error * wider)


def _skew(pairs: Pairs, metric: int) -> float:
    """Skewness of the clusters' gains around the mean over rows; 0 where they do not differ."""
    gains = pairs.gains[:, metric]
    mean = math.fsum(gains) / pairs.rows
    off = np.bincount(pairs.cluster, weights=gains) - np.bincount(pairs.cluster) * mean
    count, squares = pairs.clusters, off * off
    variance = math.fsum(squares) / count
    return math.fsum(squares * off) / count / variance**1.5 if variance > 0 and count > 1 else 0.0
