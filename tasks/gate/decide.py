"""The gate: may this challenger succeed its opponent? A pure function of stored scores.

The challenger has to prove that it is better. PROMOTE needs a gain over min_delta that noise cannot
explain, and every guardrail; REJECT is a measured failure (no gain, a guardrail broken); a result that
noise could explain, in the gain or in a guardrail, is INCONCLUSIVE (verdict.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tasks.contracts import metrics
from tasks.contracts.metrics import LOSS
from tasks.contracts.recipe import Gate
from tasks.contracts.records import ROUGE_NAMES, Decision, Scores
from tasks.contracts.slice_labels import Labels
from tasks.gate import guardrails_schema_1
from tasks.gate.earlier_looks import EarlierLook, Spent, usable
from tasks.gate.guardrails import Finding, guardrails
from tasks.gate.measure import Measured, Table, measure
from tasks.gate.notes import notes
from tasks.gate.pairs import (
    check_metric_models,
    check_same_rows,
    check_seal,
    check_table,
    check_tokenizer,
)
from tasks.gate.slices import slice_findings, slice_notes, slice_results
from tasks.gate.verdict import judge

# The version of these rules. 1: guardrails on other ROUGE types asked for proof of no loss, outputs were not
# read, and only documents equal but for white space were one cluster. 2: every look was held to alpha/k^2 by
# itself, bounds were not corrected for skew, and the share of documents that lose much was not
# asked. 3: the rules of invented numbers and names were those of before 2026-11-29 (sharper_rules.py). Stored
# decisions are recomputed by the rules that made them. tests/gate/test_gate_rules.py holds a digest of those
# that read texts: who changes one raises this number.
SCHEMA = 4


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
    labels: Labels | None = None,
    sealed: bool = False,
    schema: int = SCHEMA,
    recorded: Finding | None = None,
) -> Decision:
    """Judge a challenger against the champion, or against the untuned base where there is none.

    Tables are paired by row id; their order does not matter. `base` and `lead3` are shown and
    never decide (against the base, `base` may be None). `looks`: challengers judged against this
    opponent on these evaluation rows, this one included; `earlier`: of those before it, the scores that are
    at hand. In the decision's metrics, bounds of gate.metric are at
    the decision's alpha, those of the other metrics at gate.alpha, as guardrails use them.

    `sealed`: only the verdict of these rows is told, see `judge` in verdict.py. `labels`: of the rows, where
    gate.slices needs them. `schema`: the version of the rules, see SCHEMA; a stored decision is recomputed
    under the version that made it. `recorded`: takes the place of the guardrail of its name.

    Raises SealBroken when the two were scored under different evaluation digests, or a loss with
    different tokenizers; EvaluationError for tables that are empty, of different rows, or hold a score
    that is missing or no number, or rows without a label that gate.slices needs.
    """
    _check_compared(challenger, opponent, challenger_scores, opponent_scores, gate, opponent_kind)
    _check_shown(challenger, base, lead3, metrics.of_gate(gate))
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
        _baselines(opponent_kind, opponent, base, lead3),
        gate,
        looks,
        near_copies=schema > 1,
        spent=Spent.of(used),
        skew=schema > 2,
    )
    slices = slice_results(challenger, opponent, measured.cluster, gate, labels or {})
    of_outputs = _findings(schema, challenger, opponent, challenger_scores, measured, gate)
    findings = [
        recorded if recorded and one.guardrail.name == recorded.guardrail.name else one
        for one in (*of_outputs, *slice_findings(slices, gate))
    ]
    same_model = challenger_scores.model_digest == opponent_scores.model_digest
    verdict, reasons = judge(measured, findings, gate, looks, same_model, sealed)
    remarks = notes(verdict, measured, challenger, opponent, opponent_kind, gate, looks, len(used))
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
        notes=(*remarks, *slice_notes(slices, gate)),
        schema_version=schema,
        slices=slices,
    )


def _check_compared(
    challenger: Table,
    opponent: Table,
    challenger_scores: Scores,
    opponent_scores: Scores,
    gate: Gate,
    opponent_kind: str,
) -> None:
    """Raise unless both were scored under one seal, and each table is what its record says."""
    check_seal(challenger_scores, opponent_scores)
    if gate.metric == LOSS:
        check_tokenizer(challenger_scores, opponent_scores, opponent_kind)
    check_metric_models(challenger_scores, opponent_scores, opponent_kind)
    names = metrics.of_gate(gate)
    check_table("challenger", challenger, challenger_scores, names)
    check_table(opponent_kind, opponent, opponent_scores, names)


def _baselines(
    opponent_kind: str, opponent: Table, base: Table | None, lead3: Table | None
) -> dict[str, Table | None]:
    """The tables whose means are shown beside the challenger's."""
    if opponent_kind == "base":
        return {"base": opponent if base is None else base, "lead3": lead3, "champion": None}
    return {"base": base, "lead3": lead3, "champion": opponent}


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
