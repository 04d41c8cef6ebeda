"""Has the champion decayed? Its scores on fresh rows against those on the sealed evaluation set.

A pure function of two stored tables. They hold different rows, so their seals differ: on purpose, and
only here. Everything else under the seal must be the same: prompt, decoding and metric. The first two
are in the model's own package, so both tables must name one model digest (and so one tokenizer, by
which losses are comparable); the metric is the same because both tables are scored in one run, or
recalled by keys that hold the metric's code.

The two samples are independent: documents of each are drawn with replacement, each with all its
rows, and the difference of the two means over rows is taken again (Efron & Tibshirani 1993, chapter
8). Bounds are expanded percentiles (bootstrap.py), at the level for the smaller sample, which
makes them wider. They are not corrected for repeated looks: a false alarm starts a retrain, which
still has to pass the gate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.contracts.errors import EvaluationError
from tasks.contracts.formatting import changed, confidence, short_gain, short_score
from tasks.contracts.metrics import direction, measured, sign
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Prediction, Scores
from tasks.gate.bootstrap import (
    MIN_EVIDENCE,
    draw_means,
    effective_clusters,
    expanded_level,
    resamples_needed,
)
from tasks.gate.clusters import clusters
from tasks.gate.measure import Table
from tasks.gate.pairs import RESOLUTION, check_table, mean

DecayVerdict = Literal["DECAYED", "STEADY", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Sample:
    """One side of the comparison: the champion's primary metric on one set of rows."""

    mean: float
    rows: int
    documents: int
    evaluation_digest: str  # the seal


@dataclass(frozen=True)
class Decay:
    """The answer: `drop` is the sealed set's mean minus the fresh rows', so positive is worse.

    Of a loss it is the rise, the fresh rows' minus the sealed set's: positive is worse there too.
    """

    verdict: DecayVerdict
    reasons: tuple[str, ...]
    metric: str
    champion_version: int
    model_digest: str
    sealed: Sample
    fresh: Sample
    drop: float
    low: float  # one-sided bounds of the drop, each at alpha
    high: float
    alpha: float
    max_decay: float
    schema_version: int = 1


def decide_decay(
    sealed: Table,
    fresh: Table,
    gate: Gate,
    max_decay: float,
    *,
    champion_version: int,
    sealed_scores: Scores,
    fresh_scores: Scores,
) -> Decay:
    """Compare the champion's gate.metric on two sets of rows; bounds at gate.alpha.

    DECAYED: the drop's lower bound exceeds `max_decay`. STEADY: its upper bound is at most that.
    INCONCLUSIVE: neither, or a side is worth fewer than 20 documents of equal weight.

    Raises EvaluationError for tables of two models or with a document in common, and for tables
    that are empty or hold a score that is missing or no number.
    """
    names = measured(gate.metric)
    check_table("champion, sealed rows", sealed, sealed_scores, names)
    check_table("champion, fresh rows", fresh, fresh_scores, names)
    _check_comparable(sealed, fresh, sealed_scores, fresh_scores)
    drop = sign(gate.metric) * (mean(sealed, gate.metric) - mean(fresh, gate.metric))
    low, high, evidence = bounds(sealed, fresh, gate)
    verdict, reasons = judge(gate, drop, low, high, max_decay, evidence)
    return Decay(
        verdict=verdict,
        reasons=tuple(reasons),
        metric=gate.metric,
        champion_version=champion_version,
        model_digest=fresh_scores.model_digest,
        sealed=_sample(sealed, gate.metric, sealed_scores),
        fresh=_sample(fresh, gate.metric, fresh_scores),
        drop=drop,
        low=low,
        high=high,
        alpha=gate.alpha,
        max_decay=max_decay,
    )


def judge(
    gate: Gate,
    drop: float,
    low: float,
    high: float,
    max_decay: float,
    evidence: tuple[float, float],
) -> tuple[DecayVerdict, list[str]]:
    """The verdict and its reasons. `evidence`: effective documents of the sealed and the fresh rows."""
    sides = zip(("evaluation set is", "fresh rows are"), evidence, strict=True)
    few = [
        f"the {side} worth only {count:.3g} documents; under {MIN_EVIDENCE} no bound can be trusted"
        for side, count in sides
        if count < MIN_EVIDENCE
    ]
    level, worse = confidence(gate.alpha), _worse(gate.metric)
    measured_drop, its = f"{gate.metric} dropped by {short_gain(drop)}", "its"
    if worse == "rise":
        measured_drop, its = changed(gate.metric, -drop), "the rise's"
    if few:
        return "INCONCLUSIVE", few
    if low - max_decay > RESOLUTION:
        return "DECAYED", [
            f"{measured_drop}; {its} {level} lower bound {short_score(low)} is over {max_decay:g}"
        ]
    if high - max_decay <= RESOLUTION:
        return "STEADY", [
            f"{measured_drop}; {its} {level} upper bound {short_score(high)} is not over {max_decay:g}"
        ]
    return "INCONCLUSIVE", [
        f"{measured_drop}: a {worse} over {max_decay:g} is neither shown ({level} lower bound "
        f"{short_score(low)}) nor excluded (upper bound {short_score(high)}); more fresh rows would tell"
    ]


def bounds(sealed: Table, fresh: Table, gate: Gate) -> tuple[float, float, tuple[float, float]]:
    """Lower and upper bound of the drop at gate.alpha, and the effective documents of each side.

    The same tables, in whatever order of rows, give the same bits: scores are rounded to
    pairs.RESOLUTION, so that sums are exact, and the draws are seeded.
    """
    totals = _totals(sealed, gate.metric), _totals(fresh, gate.metric)
    evidence = tuple(effective_clusters(side[:, 1].astype(np.int64)) for side in totals)
    count = resamples_needed(
        gate.bootstrap_samples,
        expanded_level(gate.alpha, max(MIN_EVIDENCE, min(evidence))),
        sum(map(len, totals)),
    )
    seeds = np.random.SeedSequence(gate.seed).spawn(2)
    sealed_means, fresh_means = (
        draw_means(side, count, np.random.PCG64(seed))[:, 0]
        for side, seed in zip(totals, seeds, strict=True)
    )
    drops = np.sort(sealed_means - fresh_means)
    beyond = max(math.floor(expanded_level(gate.alpha, min(evidence)) * (count + 1)) - 1, 0)
    return float(drops[beyond]), float(drops[-1 - beyond]), (evidence[0], evidence[1])


def _totals(rows: Sequence[Prediction], metric: str) -> NDArray[np.float64]:
    """Float64, clusters by (sum of scores, number of rows), whatever the order of `rows`."""
    ordered = sorted(rows, key=lambda row: row.id)
    cluster = np.array(clusters(ordered), dtype=np.int64)
    scores = np.array([row.scores[metric] for row in ordered], dtype=np.float64)
    rounded = sign(metric) * np.round(scores / RESOLUTION) * RESOLUTION
    return np.column_stack([np.bincount(cluster, weights=rounded), np.bincount(cluster)])


def _check_comparable(
    sealed: Table, fresh: Table, sealed_scores: Scores, fresh_scores: Scores
) -> None:
    if sealed_scores.model_digest != fresh_scores.model_digest:
        raise EvaluationError(
            f"the sealed rows were scored for model {sealed_scores.model_digest[:16]}, the fresh "
            f"ones for {fresh_scores.model_digest[:16]}; score one model on both"
        )
    if shared := {row.source for row in sealed} & {row.source for row in fresh}:
        raise EvaluationError(
            f"{len(shared)} documents are in the evaluation set and in the fresh rows, such as "
            f"{min(shared)!r}; drop them from the fresh rows"
        )


def _sample(rows: Table, metric: str, scores: Scores) -> Sample:
    return Sample(mean(rows, metric), len(rows), max(clusters(rows)) + 1, scores.evaluation_digest)


def _worse(metric: str) -> str:
    """What getting worse is called."""
    return "rise" if sign(metric) < 0 else "drop"


def decay_headline(decision: Decay, name: str) -> str:
    """The verdict in a line, such as `STEADY demo v3: rougeL 0.831 on 120 fresh rows, ...`."""
    fresh, sealed = decision.fresh, decision.sealed
    bounds = f"[{short_score(decision.low)}, {short_score(decision.high)}]"
    return (
        f"{decision.verdict} {name} v{decision.champion_version}: {decision.metric} "
        f"{short_score(fresh.mean)} on {fresh.rows} fresh rows, {short_score(sealed.mean)} on the "
        f"{sealed.rows} of the evaluation set; {_worse(decision.metric)} "
        f"{short_gain(decision.drop)} {bounds}{direction(decision.metric)}"
    )


def decay_markdown(decision: Decay, name: str) -> str:
    """The same as a short page."""
    sides = (("evaluation set", decision.sealed), ("fresh rows", decision.fresh))
    worse = _worse(decision.metric)
    lines = [
        f"**{decay_headline(decision, name)}**",
        "",
        f"| | {decision.metric} | rows | documents |",
        "|---|---|---|---|",
        *(f"| {who} | {side.mean:.4f} | {side.rows} | {side.documents} |" for who, side in sides),
        f"| {worse} | {decision.drop:+.4f} [{decision.low:+.4f}, {decision.high:+.4f}] | | |",
        "",
        f"In brackets: one-sided {confidence(decision.alpha)} bounds; a {worse} over {decision.max_decay:g} "
        "(evaluation.max_decay) is decay.",
        "",
        *(f"- {reason}" for reason in decision.reasons),
    ]
    return "\n".join(lines) + "\n"
