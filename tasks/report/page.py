"""The report as one HTML page that needs no network: style and plots are inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks.contracts import formatting
from tasks.contracts.metrics import LOSS
from tasks.contracts.records import MetricResult
from tasks.report.data import ReportData
from tasks.report.examples import examples, losses, wins
from tasks.report.marks import Marker
from tasks.report.plots import Plot

FOREST = 150  # width of an interval's drawing, in pixels


def is_link(text: str | None) -> bool:
    """Whether this is an address a browser may open: never `javascript:` and the like."""
    return urlsplit(text or "").scheme in {"http", "https"}


def nesting_depth(facts: object) -> int:
    """How deep groups are nested in groups: 0 for a plain fact."""
    if isinstance(facts, Mapping):
        return 1 + max(map(nesting_depth, facts.values()), default=0)
    if isinstance(facts, (list, tuple)):
        return max(map(nesting_depth, facts), default=0)
    return 0


FILTERS = (
    formatting.score,
    formatting.gain,
    formatting.duration,
    formatting.gib,
    formatting.label,
    formatting.fact,
    formatting.guardrail_title,
    formatting.metric_title,
    formatting.scores_title,
    formatting.difference_title,
    formatting.change_of,
    nesting_depth,
)


def render_html(data: ReportData, plots: Sequence[Plot]) -> str:
    """The page. Documents and outputs are untrusted: all text is escaped.

    Raises KeyError when the two tables hold different rows.
    """
    ordered = examples(data.challenger, data.opponent, data.metric)
    page: str = template("report.html").render(
        data=data,
        decision=data.decision,
        verdict=formatting.VERDICT_TITLES[data.decision.ending].capitalize(),
        plots=plots,
        marks=Marker(data.challenger).parts,
        wins=wins(ordered),
        losses=losses(ordered),
        about_feedback=formatting.about_feedback(data.decision),
        forest_width=FOREST,
    )
    return page


def template(name: str) -> Any:
    """A Jinja template of this folder, for HTML: all text that it is given is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in (*FILTERS, forest)}
    environment.tests["link"] = is_link
    return environment.get_template(name)


def forest(metrics: Mapping[str, MetricResult]) -> dict[str, dict[str, float]]:
    """Horizontal positions of each metric's gain, bounds and zero, in pixels; to the right is better.

    ROUGE types share a scale, a loss (in nats) has its own.
    """
    rouge = {name: m for name, m in metrics.items() if name != LOSS}
    loss = {name: m for name, m in metrics.items() if name == LOSS}
    return _positions(loss) | _positions(rouge)


def _positions(results: Mapping[str, MetricResult]) -> dict[str, dict[str, float]]:
    low = min([0.0, *(result.low for result in results.values())])
    high = max([0.0, *(result.high for result in results.values())])
    span = (high - low) or 1.0

    def pixel(value: float) -> float:
        return round(6 + (FOREST - 12) * (value - low) / span, 1)

    return {
        name: {
            "zero": pixel(0.0),
            "low": pixel(result.low),
            "high": pixel(result.high),
            "gain": pixel(result.gain),
        }
        for name, result in results.items()
    }
