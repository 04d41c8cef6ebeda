"""What the stored scores say: means, gains with bounds, and how much such a set can show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.gate.bootstrap import TAIL, Resampled, resample
from tasks.gate.pairs import Pairs, mean, pair
from tasks.gate.power import rows_needed, smallest_gain, standard_error
from tasks.recipe import Gate
from tasks.records import ROUGE_NAMES, MetricResult, Prediction

Table = Sequence[Prediction]


@dataclass(frozen=True)
class Measured:
    """All that a verdict is made of, for one challenger against one opponent."""

    metrics: dict[str, MetricResult]  # by ROUGE_NAMES
    rows: int
    clusters: int
    alpha: float  # of the primary metric's bounds
    evidence: float  # effective number of documents that tell the two apart
    error: float  # standard error of the primary metric's gain
    rough: bool  # alpha is too small for the resamples that can be drawn
    smallest_gain: float | None
    rows_needed: int | None


def level(gate: Gate, looks: int) -> float:
    """Alpha of the primary bound at the `looks`-th challenger judged on one evaluation set.

    gate.looks "correct" gives alpha/looks^2. The levels of all looks there can ever be add up to
    1.64 alpha (a union bound, as in alpha-spending: Lan & DeMets 1983): at 0.05, at most one lucky
    promotion in twelve sets, however often one tries. Fresh evaluation data start the count anew.
    """
    if looks < 1:
        raise ValueError(f"looks counts this challenger too, so it is at least 1, not {looks}")
    return gate.alpha / looks**2 if gate.looks == "correct" else gate.alpha


def measure(
    challenger: Table,
    opponent: Table,
    baselines: Mapping[str, Table | None],
    gate: Gate,
    looks: int,
) -> Measured:
    """Measure checked tables. `baselines`: tables or None for base, lead3 and champion."""
    pairs, alpha = pair(challenger, opponent), level(gate, looks)
    resampled = resample(pairs, gate.bootstrap_samples, alpha, gate.seed)
    primary = ROUGE_NAMES.index(gate.metric)
    error, evidence = standard_error(pairs, primary), resampled.evidence[primary]
    smallest = smallest_gain(error, evidence, alpha, gate.min_delta)
    metrics = {
        name: _metric(name, challenger, baselines, pairs, resampled, alpha)
        if name == gate.metric
        else _metric(name, challenger, baselines, pairs, resampled, gate.alpha)
        for name in ROUGE_NAMES
    }
    return Measured(
        metrics=metrics,
        rows=pairs.rows,
        clusters=pairs.clusters,
        alpha=alpha,
        evidence=evidence,
        error=error,
        rough=resampled.beyond(primary, alpha) < TAIL,
        smallest_gain=smallest,
        rows_needed=rows_needed(pairs.rows, metrics[gate.metric].gain, smallest, gate.min_delta),
    )


def _metric(
    name: str,
    challenger: Table,
    baselines: Mapping[str, Table | None],
    pairs: Pairs,
    resampled: Resampled,
    alpha: float,
) -> MetricResult:
    index = ROUGE_NAMES.index(name)
    low, high = resampled.bounds(index, alpha)
    means = {who: None if rows is None else mean(rows, name) for who, rows in baselines.items()}
    gain = math.fsum(pairs.gains[:, index]) / pairs.rows
    return MetricResult(**means, challenger=mean(challenger, name), gain=gain, low=low, high=high)
