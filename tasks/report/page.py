"""The report as one HTML page that needs no network: style and plots are inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.contracts.metrics import LOSS
from tasks.contracts.records import Decision, MetricResult
from tasks.report import words
from tasks.report.data import ReportData
from tasks.report.examples import examples, losses, wins
from tasks.report.plots import Plot

FOREST = 150  # width of an interval's drawing, in pixels


def render_html(data: ReportData, plots: Sequence[Plot]) -> str:
    """The page. Documents and outputs are untrusted: all text is escaped.

    Raises KeyError when the two tables hold different rows.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    house = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (words.score, words.gain, words.label, words.value, words.levels)
    named = (words.guardrail, words.metric, words.kind, words.moved, words.moves)
    used = (words.duration, words.gib)
    house.filters |= {function.__name__: function for function in (*filters, *named, *used)}
    house.tests["link"] = words.is_link
    ordered = examples(data.challenger, data.opponent, data.metric)
    return house.get_template("report.html").render(
        data=data,
        decision=data.decision,
        verdict=words.DONE[data.decision.verdict],
        plots=plots,
        wins=wins(ordered),
        losses=losses(ordered),
        forest=forest(data.decision),
        forest_width=FOREST,
    )


def forest(decision: Decision) -> dict[str, dict[str, float]]:
    """Where each metric's gain, bounds and zero lie, in pixels; to the right is better.

    ROUGE types share a scale, a loss (in nats) has its own.
    """
    rouge = {name: m for name, m in decision.metrics.items() if name != LOSS}
    loss = {name: m for name, m in decision.metrics.items() if name == LOSS}
    return _places(loss) | _places(rouge)


def _places(found: Mapping[str, MetricResult]) -> dict[str, dict[str, float]]:
    low = min([0.0, *(m.low for m in found.values())])
    high = max([0.0, *(m.high for m in found.values())])
    reach = (high - low) or 1.0

    def place(value: float) -> float:
        return round(6 + (FOREST - 12) * (value - low) / reach, 1)

    return {
        name: {
            "zero": place(0.0),
            "low": place(m.low),
            "high": place(m.high),
            "gain": place(m.gain),
        }
        for name, m in found.items()
    }
