"""The gate: may this challenger succeed its opponent? A pure function of stored scores.

The challenger has to prove that it is better. PROMOTE needs a gain over min_delta that noise cannot
explain, and every guardrail; REJECT is a measured failure (no gain, a guardrail broken); a result that
noise could explain, in the gain or in a guardrail, is INCONCLUSIVE.

Stored decisions are recomputed and compared with their reasons (recompute.py), so the texts of reasons
stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tasks.contracts import metrics
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
from tasks.contracts.metrics import LOSS
from tasks.contracts.recipe import Gate
from tasks.contracts.records import ROUGE_NAMES, Decision, Scores, Verdict
from tasks.gate import guardrails_schema_1
from tasks.gate.bootstrap import MIN_EVIDENCE
from tasks.gate.earlier_looks import EarlierLook, Spent, usable
from tasks.gate.guardrails import Finding, guardrails
from tasks.gate.measure import Measured, Table, measure
from tasks.gate.notes import notes
from tasks.gate.pairs import RESOLUTION, check_same_rows, check_seal, check_table, check_tokenizer
from tasks.gate.slices import slice_findings, slice_notes, slice_results

# The version of these rules. 1: guardrails on other ROUGE types asked for proof of no loss, outputs were not
# read, and only documents equal but for white space were one cluster. 2: every look was held to alpha/k^2 by
# itself, bounds were not corrected for skew, and the share of documents that lose much was not
# asked. Stored decisions are recomputed by the rules that made them.
SCHEMA = 3


def decide(
    challenger: Table,
    opponent: Table,
    gate: Gate,
    *,
    opponent_kind: Literal["champion", "base"],
    opponent_version: int | None,
    challenger_scores: Scores,
    opponent_scores: Scores,
    base: Table | None,
    lead3: Table | None,
    looks: int,
    earlier: Sequence[EarlierLook] = (),
    sealed: bool = False,
    schema: int = SCHEMA,
) -> Decision:
    """Judge a challenger against the champion, or against the untuned base where there is none.

    Tables are paired by row id; their order does not matter. `base` and `lead3` are shown and
    never decide (against the base, `base` may be None). `looks`: challengers judged against this
    opponent on these evaluation rows, this one included; `earlier`: of those before it, the scores that are
    at hand. In the decision's metrics, bounds of gate.metric are at
    the decision's alpha, those of the other metrics at gate.alpha, as guardrails use them.

    `sealed`: the verdict is all that is told of these rows, so a gain that was not measured is a REJECT
    only where noise cannot explain it. Otherwise the verdict would tell the sign of every gain: of series
    in which 40 changes without any gain are tried and those that were no REJECT are then put together, 25%
    would promote.

    `schema`: of the rules, see SCHEMA; an earlier one makes a stored decision again.

    Raises SealBroken when the two were scored under different evaluation digests, or a loss with
    different tokenizers; EvaluationError for tables that are empty, of different rows, or hold a score
    that is missing or no number.
    """
    against_base = opponent_kind == "base"
    _check_scores(challenger_scores, opponent_scores, gate, opponent_kind)
    names = metrics.measured(gate.metric)
    check_table("challenger", challenger, challenger_scores, names)
    check_table(opponent_kind, opponent, opponent_scores, names)
    _check_shown(challenger, base, lead3, names)
    baselines = {
        "base": opponent if against_base and base is None else base,
        "lead3": lead3,
        "champion": None if against_base else opponent,
    }
    used = usable(
        earlier if schema > 2 and gate.looks == "correct" else (),
        challenger,
        challenger_scores.model_digest,
        opponent_scores.model_digest,
        gate.metric,
        looks,
    )
    measured = measure(
        challenger,
        opponent,
        baselines,
        gate,
        looks,
        near_copies=schema > 1,
        spent=Spent.of(used),
        skew=schema > 2,
    )
    slices = slice_results(challenger, opponent, measured.cluster, gate)
    findings = [
        *_findings(schema, challenger, opponent, challenger_scores, measured, gate),
        *slice_findings(slices, gate),
    ]
    same_model = challenger_scores.model_digest == opponent_scores.model_digest
    verdict, reasons = judge(measured, findings, gate, looks, same_model, sealed)
    return Decision(
        verdict=verdict,
        reasons=tuple(reasons),
        metrics=measured.metrics,
        guardrails=tuple(finding.guardrail for finding in findings),
        opponent=opponent_kind,
        opponent_version=opponent_version,
        challenger_digest=challenger_scores.model_digest,
        opponent_digest=opponent_scores.model_digest,
        evaluation_digest=challenger_scores.evaluation_digest,
        rows=measured.rows,
        clusters=measured.clusters,
        looks=looks,
        alpha=measured.alpha,
        smallest_gain=measured.smallest_gain,
        rows_needed=measured.rows_needed,
        notes=(
            *notes(verdict, measured, challenger, opponent, opponent_kind, gate, looks, len(used)),
            *slice_notes(slices, gate),
        ),
        schema_version=schema,
        slices=slices,
    )


def judge(
    measured: Measured,
    findings: Sequence[Finding],
    gate: Gate,
    looks: int,
    same_model: bool,
    sealed: bool = False,
) -> tuple[Verdict, list[str]]:
    """The verdict and its reasons, with numbers. `same_model`: by digest; `sealed`: see `decide`."""
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


def _check_scores(challenger: Scores, opponent: Scores, gate: Gate, opponent_kind: str) -> None:
    check_seal(challenger, opponent)
    if gate.metric == LOSS:
        check_tokenizer(challenger, opponent, opponent_kind)


def _findings(
    schema: int,
    challenger: Table,
    opponent: Table,
    challenger_scores: Scores,
    measured: Measured,
    gate: Gate,
) -> Sequence[Finding]:
    """What the guardrails of that version of the rules find."""
    if schema == 1:
        return guardrails_schema_1.guardrails(
            challenger, opponent, challenger_scores, measured.metrics, gate
        )
    return guardrails(challenger, opponent, measured, gate, schema)


def _check_shown(
    challenger: Table, base: Table | None, lead3: Table | None, names: Sequence[str]
) -> None:
    for title, rows, needed in (("base", base, names), ("lead3", lead3, ROUGE_NAMES)):
        if rows is not None:
            check_table(title, rows, names=needed)
            check_same_rows(title, challenger, rows)


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
