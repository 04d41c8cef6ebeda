"""Decisions of schema 3, made before the rules of invented numbers and names were made sharper.

Those rules are a thousand lines, and are not kept. What else such a decision says is held to the last bit:
it is made again with the share of invented numbers and names that it has on record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tasks.contracts.records import Decision, Guardrail
from tasks.gate.guardrails import INVENTED, INVENTED_FAULT, NOISE, Finding

SCHEMA_BEFORE = 3
ABOUT = (
    "its guardrail invented_rise cannot be held to the last bit: the rules of invented numbers and names "
    "were made sharper on 2026-11-29, and it was made by those of before; all else of it is as its scores "
    "give"
)


def as_before(
    stored: Decision, made: Decision, decide: Callable[[Finding], Decision]
) -> Decision | None:
    """The decision made again with the stored `invented_rise`; None where that does not give the stored one.

    `made`: by today's rules. `decide`: makes it with this finding in place of its own of that name.
    """
    recorded, own = _invented(stored), _invented(made)
    if stored.schema_version != SCHEMA_BEFORE or not recorded or not own or recorded == own:
        return None
    if not _is_possible(recorded, own, stored.rows):
        return None
    told = next((reason for reason in stored.reasons if INVENTED_FAULT in reason), "")
    for noise in (False, True):
        again = decide(Finding(recorded, told.removesuffix(NOISE) + NOISE * noise, noise))
        if without_notes(again) == without_notes(stored):
            return again
    return None


def without_notes(decision: Decision) -> Decision:
    """Notes do not affect the verdict, and their wording may change."""
    return replace(decision, notes=())


def _invented(decision: Decision) -> Guardrail | None:
    return next((one for one in decision.guardrails if one.name == INVENTED), None)


def _is_possible(recorded: Guardrail, own: Guardrail, rows: int) -> bool:
    """Whether it is a difference of two shares of these rows, held to the same bound."""
    count = round(recorded.value * rows)
    held = recorded.value <= float(own.bound.removeprefix("<= "))
    return (
        recorded.bound == own.bound
        and recorded.held == held
        and abs(count) <= rows
        and recorded.value == count / rows
    )
