"""A registered model's page: its versions over time, what made each, what was refused, and looks used up.

It is given entries of the history, which hold no sealed number of a refused challenger; nothing else of a
refusal is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.contracts.metrics import change
from tasks.report.page import template
from tasks.tracking.history import HistoryRecord
from tasks.tracking.making import Making

DRAWING = 150  # width of an interval's drawing, in pixels
MARGIN = 6


@dataclass(frozen=True)
class VersionRow:
    """One version. `entry`: its promotion or rollback in the history; `made`: by the run that trained it."""

    number: int
    digest: str
    entry: HistoryRecord | None
    rollback_to: int | None
    made: Making
    run_url: str | None

    @property
    def became(self) -> str:
        """How it came to be champion."""
        if self.rollback_to:
            return f"rolled back to v{self.rollback_to}'s model"
        return "promoted" if self.entry else "never champion"


@dataclass(frozen=True)
class ModelPage:
    """All that the page shows. `problem`: why no version is called champion, in a sentence."""

    name: str
    champion: int | None
    since: str
    problem: str
    versions: Sequence[VersionRow]  # oldest first
    waiting: Sequence[HistoryRecord]  # passed the gate, and people are asked
    refusals: Sequence[HistoryRecord]  # and promotions that never took effect
    run_urls: Mapping[str, str]  # of both, by run
    written: str  # when, UTC
    store: str
    verified: Sequence[str] = ()  # where the champion was seen to write what it was judged by

    @property
    def looks(self) -> list[tuple[str, str, int]]:
        """Opponent, evaluation seal, and the challengers judged so, in order of first use."""
        entries = [row.entry for row in self.versions if row.entry]
        entries += [*self.waiting, *self.refusals]
        used: dict[tuple[str, str], int] = {}
        for entry in sorted(entries, key=lambda entry: entry.time):
            if entry.looks and entry.evaluation_digest:
                key = against(entry), entry.evaluation_digest
                used[key] = max(used.get(key, 0), entry.looks)
        return [(opponent, seal, count) for (opponent, seal), count in used.items()]


def against(entry: HistoryRecord) -> str:
    """Whom a challenger was judged against."""
    return f"v{entry.opponent_version}" if entry.opponent_version else "the untuned base"


def render(page: ModelPage) -> str:
    """The page as HTML that needs no network."""
    return str(
        template("model_page.html").render(
            page=page,
            against=against,
            numbers=numbers,
            drawings=_drawings([row.entry for row in page.versions if row.entry]),
            width=DRAWING,
        )
    )


def numbers(entry: HistoryRecord | None) -> tuple[float, float, float] | None:
    """The metric's change with its bounds; None where there is none, or where it is sealed."""
    if entry is None or entry.metric is None:
        return None
    if entry.gain is None or entry.low is None or entry.high is None:
        return None
    return change(entry.metric, entry.gain, entry.low, entry.high)


def _drawings(entries: Sequence[HistoryRecord]) -> dict[str, dict[str, float]]:
    """Horizontal positions of gain, bounds and zero in pixels, by run; to the right is better.

    Gains in one metric share a scale.
    """
    found: dict[str, dict[str, float]] = {}
    for metric in {entry.metric for entry in entries}:
        known = [
            (entry.mlflow_run_id, entry.low, entry.gain, entry.high)
            for entry in entries
            if entry.metric == metric
            and entry.low is not None
            and entry.gain is not None
            and entry.high is not None
        ]
        least = min([0.0, *(low for _, low, _, _ in known)])
        span = max([0.0, *(high for *_, high in known)]) - least or 1.0
        for run_id, *values in known:
            places = zip(("zero", "low", "gain", "high"), (0.0, *values), strict=True)
            found[run_id] = {
                name: round(MARGIN + (DRAWING - 2 * MARGIN) * (value - least) / span, 1)
                for name, value in places
            }
    return found
