"""The smallest gain this evaluation set could have shown, and how many rows would show the measured one."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from tasks.gate.bootstrap import student_t_quantile
from tasks.gate.pairs import Pairs

POWER = 0.8  # probability of showing a true gain; customary since Cohen (1988)


def standard_error(pairs: Pairs, metric: int) -> float:
    """Standard error of the mean gain over rows, rows of one document moving together.

    The linearized ratio estimator with the m/(m-1) correction (Cameron & Miller 2015, section
    II.B); 0 where there is one cluster, or no spread.
    """
    gains = pairs.gains[:, metric]
    mean = math.fsum(gains) / pairs.rows
    residuals = np.bincount(pairs.cluster, weights=gains) - np.bincount(pairs.cluster) * mean
    count = pairs.clusters
    if count < 2 or np.ptp(gains) == 0:
        return 0.0
    return math.sqrt(count / (count - 1) * math.fsum(residuals**2)) / pairs.rows


def smallest_gain(error: float, evidence: float, alpha: float, min_delta: float) -> float | None:
    """The true gain that a set this noisy shows with 80% probability (one-sided alpha).

    `error`: standard error of the gain; `evidence`: effective number of documents. None where the
    set has no spread to judge by.
    """
    if error == 0 or evidence < 2:
        return None
    return (
        min_delta
        + (student_t_quantile(1 - alpha, evidence - 1) + NormalDist().inv_cdf(POWER)) * error
    )


def rows_needed(rows: int, gain: float, smallest: float | None, min_delta: float) -> int | None:
    """Rows of this kind that would show `gain` with 80% probability: noise falls with their root.

    None where there is no gain over min_delta to show.
    """
    if smallest is None or gain <= min_delta:
        return None
    return math.ceil(rows * ((smallest - min_delta) / (gain - min_delta)) ** 2)
