"""The smallest gain this evaluation set could have shown, and how many rows would show the measured one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tasks.contracts.metrics import LOSS
from tasks.contracts.recipe import Gate
from tasks.gate.bootstrap import MIN_EVIDENCE, student_t_quantile
from tasks.gate.level import level
from tasks.gate.pairs import Pairs

POWER = 0.8  # probability of showing a true gain; customary since Cohen (1988)
# Standard deviation over documents of one model's ROUGE minus another's: 0.080 to 0.107 by type between
# models on DialogSum. Before a run it is not known what it will be.
TYPICAL_SPREAD = 0.1
SMALL_GAIN, LATE_LOOK = 0.01, 10


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


@dataclass(frozen=True)
class Advice:
    """What an evaluation set can show: a fact for `precis check`, and a problem where it is nothing."""

    fact: str
    problem: str = ""


def advise(
    documents: int, deciding_rows: int, open_rows: int, gate: Gate, *, named: bool = False
) -> Advice:
    """What so many deciding documents can show, before anything is spent on them.

    `named`: both parts are data of their own, so that no share decides how many rows are in which.
    """
    parts = f"gate: {deciding_rows} evaluation rows decide"
    if gate.feedback == "sealed":
        parts += f", {open_rows} are open (shown, and decide nothing)"
    if documents < MIN_EVIDENCE:
        ways = "" if named else ", raise data.evaluation_share"
        if gate.feedback == "sealed" and open_rows and not named:
            ways += ", lower gate.open_share"
        return Advice(
            parts,
            f"gate: {documents} deciding documents can never promote, {MIN_EVIDENCE} are the least; name "
            f"more rows in data.evaluation{ways}",
        )
    return Advice(f"{parts}; {_can_show(documents, gate)}")


def _can_show(documents: int, gate: Gate) -> str:
    if gate.metric == LOSS:
        return f"{documents} deciding documents; what they can show of a loss is known after a run"
    now, late = (_smallest(documents, gate, looks) for looks in (1, LATE_LOOK))
    enough = math.ceil(documents * ((now - gate.min_delta) / SMALL_GAIN) ** 2)
    return (
        f"with {documents} deciding documents a gain of {now:.3f} in {gate.metric} is promoted in "
        f"{POWER:.0%} of cases at look 1, {late:.3f} at look {LATE_LOOK}; about {enough:,} documents would "
        f"show {gate.min_delta + SMALL_GAIN:.3f} (at a spread of {TYPICAL_SPREAD:g} a document)"
    )


def _smallest(documents: int, gate: Gate, looks: int) -> float:
    error = TYPICAL_SPREAD / math.sqrt(documents)
    smallest = smallest_gain(error, documents, level(gate, looks), gate.min_delta)
    assert smallest is not None  # there is a spread, and more than one document
    return smallest
