"""One line of a registered model's history: a promotion, a refusal or a rollback."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from tasks.gate.words import DONE, plain, signed
from tasks.records import Decision, Verdict, from_json, to_json

SCHEMA_VERSION = 1
Kind = Literal["promotion", "refusal", "rollback"]


@dataclass(frozen=True)
class HistoryRecord:
    """What happened to NAME, when, and on what evidence.

    A rollback has no verdict, metric or evaluation: those are None, and looks is 0.
    """

    kind: Kind
    time: str  # UTC, ISO 8601
    name: str
    verdict: Verdict | None
    reasons: tuple[str, ...]
    version: int | None  # that became champion; None for a refusal
    opponent_version: int | None  # the champion it met; None: the untuned base
    metric: str | None
    gain: float | None
    low: float | None
    high: float | None
    looks: int  # at this evaluation digest, this one included
    evaluation_digest: str | None
    model_digest: str | None
    mlflow_run_id: str | None
    schema_version: int = SCHEMA_VERSION

    def json(self) -> str:
        """As one line of JSON; floats keep every digit."""
        return to_json(self)

    @staticmethod
    def of_json(text: str | bytes) -> HistoryRecord:
        """The record back. Raises ValueError for a record of a later schema."""
        record = from_json(HistoryRecord, text)
        if record.schema_version > SCHEMA_VERSION:
            raise ValueError(
                f"a history record of schema {record.schema_version}: this precis reads up to "
                f"{SCHEMA_VERSION}; update precis"
            )
        return record

    def line(self) -> str:
        """As one line for the terminal."""
        when = f"{self.time[:16].replace('T', ' ')}Z"
        what = f"{self.kind:9}  {f'v{self.version}' if self.version is not None else '-':4}"
        return "  ".join([when, what, *self._evidence(), "; ".join(self.reasons)]).rstrip()

    def _evidence(self) -> list[str]:
        if self.metric is None or self.gain is None or self.low is None or self.high is None:
            return []
        bounds = f"[{plain(self.low)}, {plain(self.high)}]"
        against = "base" if self.opponent_version is None else f"v{self.opponent_version}"
        verdict = [DONE[self.verdict]] if self.verdict else []
        return [*verdict, f"{self.metric} {signed(self.gain)} {bounds} against {against}"]


def of_decision(
    decision: Decision,
    name: str,
    metric: str,
    version: int | None,
    mlflow_run_id: str | None,
    time: datetime | None = None,
) -> HistoryRecord:
    """The record of a judged challenger. `metric`: the primary one; `time`: now if None."""
    found = decision.metrics[metric]
    return HistoryRecord(
        kind="refusal" if version is None else "promotion",
        time=(time or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
        name=name,
        verdict=decision.verdict,
        reasons=decision.reasons,
        version=version,
        opponent_version=decision.opponent_version,
        metric=metric,
        gain=found.gain,
        low=found.low,
        high=found.high,
        looks=decision.looks,
        evaluation_digest=decision.evaluation_digest,
        model_digest=decision.challenger_digest,
        mlflow_run_id=mlflow_run_id,
    )
