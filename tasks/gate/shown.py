"""What of a decision may be shown: the one place that turns a Decision into a ShownDecision.

All that people read (terminal, JSON, logs, tags and metrics, events, history, report) is made from a
ShownDecision, so a new output cannot show deciding rows by forgetting to leave them out.

Of a refusal are told: the verdict, and whether the gain or a guardrail was the reason. Not which guardrail,
not both, no number, not even the sign of a gain that noise could explain: simulated with learners who use
all that is told (tests/gate/test_gate_feedback.py).
"""

from __future__ import annotations

from dataclasses import fields, replace

from tasks.contracts.formatting import SAME_MODEL
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Decision, OpenPart, ShownDecision
from tasks.gate.level import level
from tasks.gate.notes import about_looks
from tasks.gate.pairs import RESOLUTION
from tasks.gate.slices import small_note

PASSED = "better on the deciding rows, and every guardrail holds"
WORSE = "worse, beyond noise"
NO_GAIN = "no gain that noise could not explain"
BROKEN = "a guardrail is broken, beyond noise"
NOISY_GUARDRAIL = "a guardrail is broken, though noise could explain it"
TOO_LITTLE = (
    "too few documents tell the two models apart, or too many challengers were judged on them"
)


def shown(
    decision: Decision,
    open_part: OpenPart | None,
    gate: Gate,
    evaluation_rows: int,
    remarks: tuple[str, ...] = (),
) -> ShownDecision:
    """What may be shown: everything under open feedback and of a promotion, else no deciding number.

    `remarks`: those of the decision's notes that are on the evaluation data, and no score.
    """
    told = ShownDecision(
        **{field.name: getattr(decision, field.name) for field in fields(Decision)},
        feedback=gate.feedback,
        evaluation_rows=evaluation_rows,
        open_part=open_part,
    )
    if gate.feedback == "open" or decision.verdict == "PROMOTE":
        return told
    return _without_numbers(
        told, gate, (kind(decision, gate),), (*_notes(decision, gate), *remarks)
    )


def before_promotion(told: ShownDecision, gate: Gate) -> ShownDecision:
    """What may be stored where readers look until the version is registered: a crash may come before it."""
    if told.feedback == "open" or told.verdict != "PROMOTE":
        return told
    return _without_numbers(told, gate, (PASSED,), ())


def _without_numbers(
    told: ShownDecision, gate: Gate, reasons: tuple[str, ...], notes: tuple[str, ...]
) -> ShownDecision:
    return replace(
        told,
        reasons=reasons,
        notes=notes,
        metrics={},
        guardrails=(),
        slices=(),
        # Both come from the spread and the gain that were measured.
        smallest_gain=None,
        rows_needed=None,
        # A later look's level tells how like earlier challengers this one is.
        alpha=level(gate, told.looks),
    )


def kind(decision: Decision, gate: Gate) -> str:
    """Why a challenger was refused, in words without numbers: one reason, the gain before guardrails."""
    if SAME_MODEL in decision.reasons:
        return SAME_MODEL
    primary = decision.metrics[gate.metric]
    if decision.verdict == "REJECT":
        if primary.high - gate.min_delta >= -RESOLUTION:
            return BROKEN
        return f"surely no gain over {gate.min_delta:g}" if gate.min_delta else WORSE
    if primary.low - gate.min_delta <= RESOLUTION:
        return NO_GAIN
    return TOO_LITTLE if all(one.held for one in decision.guardrails) else NOISY_GUARDRAIL


def _notes(decision: Decision, gate: Gate) -> tuple[str, ...]:
    """Those that depend on no score."""
    small = small_note(decision.slices)
    if decision.looks < 2:
        return tuple(small)
    if gate.looks == "count":
        return about_looks(decision.alpha, gate, decision.looks, 0), *small
    looks = (
        f"challenger {decision.looks} judged on this evaluation set, so its bound is stricter than a first "
        "one's; fresh data start the count again"
    )
    return looks, *small
