"""The content of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.contracts.records import Decision, Prediction, StepCost
from tasks.contracts.truncation import Cut


@dataclass(frozen=True)
class ReportData:
    """One run's results, as they were recorded. Tables are paired by row id."""

    name: str  # of the registered model
    version: int | None  # that this run registered
    headline: str  # the verdict in a sentence
    metric: str  # the gate's primary metric, a key of decision.metrics
    decision: Decision
    challenger: Sequence[Prediction]
    opponent: Sequence[Prediction]
    training_curve: Sequence[Mapping[str, float]] = ()  # of step, loss, learning_rate
    training_metrics: Mapping[str, float] = field(default_factory=dict)
    cuts: Sequence[Cut] = ()  # texts that did not fit
    data_report: Mapping[str, Any] = field(default_factory=dict)  # ingest's report.json
    cost: Mapping[str, float | str] = field(default_factory=dict)  # units in the names
    steps: Sequence[StepCost] = ()  # estimated and measured
    links: Mapping[str, str] = field(default_factory=dict)  # title: URL, or any text
    digests: Mapping[str, str] = field(default_factory=dict)  # and other ids

    @property
    def opponent_name(self) -> str:
        """The opponent, for headings."""
        if self.decision.opponent == "base":
            return "untuned base"
        return f"champion v{self.decision.opponent_version}"

    @property
    def against(self) -> str:
        """The opponent, for sentences."""
        return f"{'the ' if self.decision.opponent == 'base' else ''}{self.opponent_name}"
