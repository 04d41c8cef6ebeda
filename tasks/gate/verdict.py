"""The verdict, and its reasons with numbers, from what was measured and what the guardrails found.

Stored decisions are recomputed and compared with their reasons (recompute.py), so the texts of reasons
stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.contracts.formatting import (
    SAME_MODEL,
    changed,
    gain_size,
    gain_word,
    gained,
    lower_bound_title,
    row_count,
    short_score,
)
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Verdict
from tasks.gate.bootstrap import MIN_EVIDENCE
from tasks.gate.guardrails import Finding
from tasks.gate.measure import Measured
from tasks.gate.pairs import RESOLUTION


def judge(
    measured: Measured,
    findings: Sequence[Finding],
    gate: Gate,
    looks: int,
    same_model: bool,
    sealed: bool = False,
) -> tuple[Verdict, list[str]]:
    """The verdict and its reasons, with numbers. `same_model`: by digest.

    `sealed`: the verdict is all that is told of these rows, so a gain that was not measured is a REJECT
    only where noise cannot explain it. Otherwise the verdict would tell the sign of every gain: of series
    in which 40 changes without any gain are tried and those that were no REJECT are then put together, 25%
    would promote.
    """
    if same_model:
        return "REJECT", [SAME_MODEL]
    broken = [f.why for f in findings if not f.guardrail.held and not f.noise]
    no_gain = _no_gain(measured, gate)
    noise = sealed and measured.metrics[gate.metric].high - gate.min_delta >= -RESOLUTION
    if failures := [*([] if noise else no_gain), *broken]:
        return "REJECT", failures
    if no_gain:
        return "INCONCLUSIVE", [f"{no_gain[0]}, though noise could explain it"]
    unproven = [f.why for f in findings if not f.guardrail.held]
    if doubts := [*_doubts(measured, gate, looks), *unproven]:
        return "INCONCLUSIVE", [*doubts, *_would_show(measured, gate.metric)]
    return "PROMOTE", [_proof(measured, gate)]


def _no_gain(measured: Measured, gate: Gate) -> list[str]:
    gain = measured.metrics[gate.metric].gain
    if gain - gate.min_delta > RESOLUTION:
        return []
    better = gain_word(gate.metric)
    needs = f"more than {gate.min_delta:g}" if gate.min_delta else f"a {better}"
    return [f"no gain: {changed(gate.metric, gain)}, promotion needs {needs}"]


def _doubts(measured: Measured, gate: Gate, looks: int) -> list[str]:
    """Why a measured gain is not enough."""
    metric, doubts = measured.metrics[gate.metric], []
    gain = changed(gate.metric, metric.gain)
    if metric.low - gate.min_delta <= RESOLUTION:
        bound = f"{lower_bound_title(gate.metric, measured.alpha)} {short_score(metric.low)}"
        doubts.append(f"{gain}, but noise could explain it: {bound} is not over {gate.min_delta:g}")
    if measured.evidence < MIN_EVIDENCE:
        doubts.append(
            f"only {measured.evidence:.3g} documents tell the two models apart; under "
            f"{MIN_EVIDENCE} no bound can be trusted"
        )
    elif measured.error == 0:
        doubts.append(f"{gain} on every row alike, which no two models do: look at the tables")
    elif measured.rough:
        doubts.append(
            f"{looks} challengers were judged on this evaluation set, too many to tell luck from "
            f"gain at alpha {measured.alpha:.2g}: take fresh evaluation data"
        )
    return doubts


def _would_show(measured: Measured, metric: str) -> list[str]:
    reasons, better = [], gain_word(metric)
    if measured.smallest_gain is not None:
        reasons.append(
            f"the smallest {better} these {measured.rows} rows could have shown is "
            f"{gain_size(metric, measured.smallest_gain)} (80% power)"
        )
    if measured.rows_needed is not None and measured.rows_needed > measured.rows:
        reasons.append(f"{row_count(measured.rows_needed)} rows would show a {better} of this size")
    return reasons


def _proof(measured: Measured, gate: Gate) -> str:
    metric = measured.metrics[gate.metric]
    return (
        f"{gained(gate.metric, metric.gain)}; {lower_bound_title(gate.metric, measured.alpha, 'its ')} "
        f"{short_score(metric.low)} is over {gate.min_delta:g}, on {measured.rows} rows of "
        f"{measured.clusters} documents"
    )
