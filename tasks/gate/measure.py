"""What the stored scores show: means, gains with bounds, and the smallest gain such a set can show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.contracts.metrics import of_gate
from tasks.contracts.recipe import Gate
from tasks.contracts.records import ROUGE_NAMES, MetricResult, Prediction
from tasks.gate.bootstrap import TAIL, resample
from tasks.gate.earlier_looks import Spent
from tasks.gate.level import level
from tasks.gate.pairs import Pairs, mean, pair
from tasks.gate.power import rows_needed, smallest_gain, standard_error
from tasks.gate.skew import skewed_low

Table = Sequence[Prediction]


@dataclass(frozen=True)
class Measured:
    """The numbers that a verdict is made from, for one challenger against one opponent."""

    metrics: dict[str, MetricResult]  # all of metrics.of_gate(gate)
    rows: int
    clusters: int
    cluster: NDArray[np.int64]  # of each row, in order of row ids
    alpha: float  # of the primary metric's bounds
    evidence: float  # effective number of documents that tell the two apart
    error: float  # standard error of the primary metric's gain
    rough: bool  # alpha is too small for the resamples that can be drawn
    smallest_gain: float | None
    rows_needed: int | None


def measure(
    challenger: Table,
    opponent: Table,
    baselines: Mapping[str, Table | None],
    gate: Gate,
    looks: int,
    near_copies: bool = True,
    spent: Spent | None = None,
    skew: bool = True,
) -> Measured:
    """Measure checked tables. `baselines`: tables or None for base, lead3 and champion.

    `near_copies`: whether documents that are like one another are one cluster. `spent`: by earlier looks.
    `skew`: whether the deciding lower bound is corrected for a tail of losses.
    """
    names, own_alpha = of_gate(gate), level(gate, looks)
    pairs = pair(challenger, opponent, names, near_copies)
    resampled = resample(pairs, gate.bootstrap_samples, own_alpha, gate.seed, spent)
    primary = names.index(gate.metric)
    alpha = own_alpha
    if spent and own_alpha < gate.alpha:
        alpha = resampled.level_with(primary, own_alpha, gate.alpha)
    error = standard_error(pairs, primary)
    evidence = resampled.evidence[primary]
    smallest = smallest_gain(error, evidence, alpha, gate.min_delta)
    levels = [alpha if name == gate.metric else gate.alpha for name in names]
    bounds = [resampled.bounds(index, levels[index]) for index in range(len(names))]
    if skew:
        low, high = bounds[primary]
        bounds[primary] = skewed_low(pairs, primary, error, alpha, low), high
    metrics = {
        name: _metric(name, index, challenger, baselines, pairs, bounds[index])
        for index, name in enumerate(names)
    }
    return Measured(
        metrics=metrics,
        rows=pairs.rows,
        clusters=pairs.clusters,
        cluster=pairs.cluster,
        alpha=alpha,
        evidence=evidence,
        error=error,
        rough=resampled.beyond(primary, own_alpha) < TAIL,
        smallest_gain=smallest,
        rows_needed=rows_needed(pairs.rows, metrics[gate.metric].gain, smallest, gate.min_delta),
    )


def _metric(
    name: str,
    index: int,
    challenger: Table,
    baselines: Mapping[str, Table | None],
    pairs: Pairs,
    bounds: tuple[float, float],
) -> MetricResult:
    # Lead-3 is a text, not a model: it has no loss. No model reads it: a copy is supported by definition.
    has_metric = {
        title: None if title == "lead3" and name not in ROUGE_NAMES else rows
        for title, rows in baselines.items()
    }
    means = {
        title: None if rows is None else mean(rows, name) for title, rows in has_metric.items()
    }
    gain = math.fsum(pairs.gains[:, index]) / pairs.rows
    return MetricResult(
        **means, challenger=mean(challenger, name), gain=gain, low=bounds[0], high=bounds[1]
    )
