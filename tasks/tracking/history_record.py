"""One entry of a model's history, and how it reads in one line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tasks.contracts.metrics import change, direction
from tasks.contracts.records import Verdict

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class HistoryRecord:
    """One entry. `version` is None for refusals, and for a promotion that never took effect.

    `gain` and its bounds are improvements, of a loss how far it fell; `line` shows the loss's change. They
    are None for a rollback, and for a refusal under sealed feedback.
    """

    kind: Literal["promotion", "refusal", "rollback"]
    time: str  # UTC, ISO 8601
    name: str
    verdict: Verdict | None
    reasons: tuple[str, ...]
    version: int | None
    opponent_version: int | None = None
    metric: str | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    looks: int | None = None
    evaluation_digest: str | None = None
    model_digest: str
    mlflow_run_id: str
    # Where people are asked (gate.approval): `waits` until `approval_until`, and `expired` from then on.
    approval: Literal["waits", "approved", "refused", "expired"] | None = None
    approved_by: str | None = None  # who answered, also of a refusal
    comment: str | None = None
    approval_until: str | None = None
    schema_version: int = SCHEMA_VERSION

    def as_of(self, time: str) -> HistoryRecord:
        """The record at a time: a question that nobody answered until its end is a refusal from then on.

        So it needs no process that wakes up to write it.
        """
        if self.approval != "waits" or self.version is not None or time < str(self.approval_until):
            return self
        why = f"nobody approved it until {self.approval_until}"
        return replace(self, kind="refusal", approval="expired", reasons=(why, *self.reasons))

    def line(self) -> str:
        """One line for a terminal."""
        against = f"v{self.opponent_version}" if self.opponent_version else "the untuned base"
        gain = ""
        metric = self.metric
        numbers = [n for n in (self.gain, self.low, self.high) if n is not None]
        if metric is not None and len(numbers) == 3:
            moved, low, high = change(metric, *numbers)
            gain = (
                f"  {metric} {moved:+.4f} [{low:+.4f}, {high:+.4f}]{direction(metric)} "
                f"against {against}, look {self.looks}"
            )
            if self.kind == "refusal" and self.approval:
                gain += f"; {self.reasons[0]}"
        elif self.kind == "refusal":  # its numbers are sealed
            gain = f"  {'; '.join(self.reasons)}, against {against}, look {self.looks}"
        return f"{self.time}  {self.title()}{gain}"

    def title(self) -> str:
        """What happened, without numbers or reasons."""
        if self.kind == "rollback":
            return (
                f"rolled back to v{self.version}"
                if self.version is not None
                else "rollback started, not finished"
            )
        if self.kind == "promotion":
            if self.version is not None:
                who = f", approved by {self.approved_by}" if self.approved_by else ""
                return f"promoted v{self.version}{who}"
            waits = f"waits for approval until {self.approval_until}"
            return f"passed the gate, {waits if self.approval == 'waits' else 'not registered'}"
        return "passed the gate, refused" if self.approval else f"refused ({self.verdict})"
