"""The content of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.contracts.formatting import part_titles
from tasks.contracts.records import (
    Guardrail,
    MetricResult,
    OpenPart,
    Prediction,
    ShownDecision,
    SliceResult,
    StepCost,
)
from tasks.contracts.truncation import Cut

SLICES_SHOWN = 40


@dataclass(frozen=True)
class Part:
    """The numbers of one part of the evaluation set that are shown. No title: of all of it."""

    title: str
    metrics: Mapping[str, MetricResult]
    guardrails: Sequence[Guardrail]
    rows: int
    clusters: int
    alpha: float
    slices: Sequence[SliceResult]
    slices_left_out: int  # of those that were measured, which a page has no room for
    decides: bool


@dataclass(frozen=True)
class ReportData:
    """One run's results, as they may be shown. Tables are paired by row id; under sealed feedback they
    hold the open rows alone.
    """

    name: str  # of the registered model
    version: int | None  # that this run registered
    headline: str  # the verdict in a sentence
    metric: str  # the gate's primary metric, a key of decision.metrics
    decision: ShownDecision
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
    def parts(self) -> list[Part]:
        """What numbers may be shown of: the deciding part unless withheld, and the open part."""
        decision, opened = self.decision, self.decision.open_part
        deciding_title, open_title = part_titles(decision)
        parts = []
        if not decision.withheld:
            parts.append(_part(deciding_title, decision, decides=True))
        if opened:
            parts.append(_part(open_title, opened, decides=False))
        return parts

    @property
    def no_examples(self) -> str:
        """Why single rows are not shown with the models' names; empty where they are."""
        if self.decision.ending != "WAITS_FOR_APPROVAL":
            return ""
        return "Single rows are shown in the blind pairs alone until somebody has answered."

    @property
    def example_rows(self) -> str:
        """Which rows examples and plots are of, where they are not all rows."""
        if self.decision.feedback == "open":
            return ""
        return f"Of the open part: {len(self.challenger)} of {self.decision.evaluation_rows} rows."

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


def worst_slices(slices: Sequence[SliceResult], most: int = SLICES_SHOWN) -> list[SliceResult]:
    """Those that a page has room for, in their order: first ones with bounds, the least gains of them."""
    ranked = sorted(range(len(slices)), key=lambda n: (slices[n].low is None, slices[n].gain))
    return [slices[n] for n in sorted(ranked[:most])]


def _part(title: str, found: ShownDecision | OpenPart, *, decides: bool) -> Part:
    slices = worst_slices(found.slices)
    return Part(
        title,
        found.metrics,
        found.guardrails,
        found.rows,
        found.clusters,
        found.alpha,
        slices,
        len(found.slices) - len(slices),
        decides,
    )
