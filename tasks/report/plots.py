"""The report's plots, as PNG in a data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.contracts import formatting
from tasks.report.examples import Example, examples

if TYPE_CHECKING:
    from tasks.report.data import ReportData

BLUE, ORANGE, GREY, INK = "#1f5fa8", "#c2571a", "#9aa3ad", "#1c2530"
FIFTHS = 5
MARGINS = {"left": 0.13, "right": 0.87, "bottom": 0.16, "top": 0.97}  # of the figure
LABEL_PIXELS = 6  # between a label and the picture's edge
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e9ec",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Plot:
    """A picture with a title and a sentence that says what it shows."""

    title: str
    text: str
    uri: str  # data:image/png;base64,...


def plots(data: ReportData) -> list[Plot]:
    """All plots that there is data for; a run that skipped training has no loss curve."""
    ordered = examples(data.challenger, data.opponent, data.metric)
    curve = [point for point in data.training_curve if "loss" in point and "step" in point]
    training = [_loss(curve)] if curve else []
    if not ordered:  # no open row
        return training
    return [*training, _histogram(data, ordered), _lengths(data, ordered)]


def _loss(curve: Sequence[Mapping[str, float]]) -> Plot:
    with _Drawing() as drawing:
        axes = drawing.axes
        steps, loss = [p["step"] for p in curve], [p["loss"] for p in curve]
        axes.plot(steps, loss, color=BLUE, linewidth=1.5, marker="o", markersize=2.5)
        axes.set(xlabel="optimizer step", ylabel="training loss (nats a token)")
        if all("learning_rate" in p for p in curve):
            right = axes.twinx()
            right.plot(steps, [p["learning_rate"] for p in curve], color=GREY, linewidth=1)
            right.set_ylabel("learning rate", color="#6b7580")
            right.set_ylim(bottom=0)
            right.grid(visible=False)
            right.yaxis.set_major_formatter("{x:g}")
    text = (
        f"Training loss, from {loss[0]:.3f} to {loss[-1]:.3f}; the grey line is the learning rate."
    )
    return Plot("Training loss", text, drawing.uri)


def _histogram(data: ReportData, ordered: Sequence[Example]) -> Plot:
    gains = np.array([example.gain for example in ordered])
    result = data.parts[-1].metrics[
        data.metric
    ]  # of the rows drawn: the open part where there is one
    reach = max(0.05, float(np.abs(gains).max()))
    bins = np.linspace(-reach, reach, 32)  # odd: the middle one is centred on zero
    with _Drawing() as drawing:
        axes = drawing.axes
        counts, edges = np.histogram(gains, bins)
        middles = (edges[:-1] + edges[1:]) / 2
        colours = np.where(middles > 1e-9, BLUE, np.where(middles < -1e-9, ORANGE, GREY))
        axes.bar(middles, counts, width=np.diff(edges) * 0.92, color=list(colours))
        axes.axvspan(result.low, result.high, color=INK, alpha=0.12, linewidth=0)
        axes.axvline(result.gain, color=INK, linewidth=1.4)
        axes.set(xlabel=f"{formatting.gain_axis_title(data.metric)} on one row", ylabel="rows")
        axes.yaxis.get_major_locator().set_params(integer=True)
    won, lost = int((gains > 0).sum()), int((gains < 0).sum())
    text = (
        f"{won} rows gained, {lost} lost, {len(gains) - won - lost} stayed equal. "
        "The line is the mean gain, the band its bounds."
    )
    return Plot("Gain per example", text, drawing.uri)


def _lengths(data: ReportData, ordered: Sequence[Example]) -> Plot:
    lengths = np.array([max(example.words, 1) for example in ordered])
    gains = np.array([example.gain for example in ordered])
    by_length = np.argsort(lengths, kind="stable")
    with _Drawing() as drawing:
        axes = drawing.axes
        axes.scatter(lengths, gains, s=9, color=BLUE, alpha=0.35, linewidths=0)
        axes.axhline(0, color=INK, linewidth=0.8)
        parts = [part for part in np.array_split(by_length, FIFTHS) if len(part)]
        middles = [float(np.median(lengths[part])) for part in parts]
        means = [float(gains[part].mean()) for part in parts]
        axes.plot(middles, means, color=ORANGE, linewidth=1.6, marker="o", markersize=4)
        axes.set(xlabel="words in the document", ylabel=formatting.gain_axis_title(data.metric))
        if lengths.max() > 20 * lengths.min():
            axes.set_xscale("log")
    text = "A dot is a row. The orange line is the mean gain of each fifth of the rows by length."
    return Plot("Gain against document length", text, drawing.uri)


class _Drawing:
    """A figure in the report's style, drawn without pyplot's global state; `uri` when done."""

    def __enter__(self) -> _Drawing:
        import matplotlib
        from matplotlib.figure import Figure

        self._style: Any = matplotlib.rc_context(STYLE)
        self._style.__enter__()
        self._figure: Any = Figure(figsize=(5.0, 3.1), dpi=150)
        self.axes: Any = self._figure.add_subplot()
        # Own margins: matplotlib's constrained layout draws everything twice to find them.
        self._figure.subplots_adjust(**MARGINS)
        return self

    def __exit__(self, *error: object) -> None:
        stream = io.BytesIO()
        if error[0] is None:
            self._fit_labels()
            self._figure.savefig(stream, format="png", metadata={"Software": None})
        self._style.__exit__(*error)
        self.uri = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"

    def _fit_labels(self) -> None:
        """Widen the margins where the labels of an axis need more: "-0.05" is wider than "10"."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        renderer: Any = FigureCanvasAgg(self._figure).get_renderer()
        width, height = self._figure.bbox.width, self._figure.bbox.height
        left = right = bottom = 0.0
        for axes in self._figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                labels = axis.get_tightbbox(renderer)
                if labels is not None:
                    left = max(left, (axes.bbox.x0 - labels.x0 + LABEL_PIXELS) / width)
                    right = max(right, (labels.x1 - axes.bbox.x1 + LABEL_PIXELS) / width)
                    bottom = max(bottom, (axes.bbox.y0 - labels.y0 + LABEL_PIXELS) / height)
        self._figure.subplots_adjust(
            left=max(MARGINS["left"], left),
            right=min(MARGINS["right"], 1 - right),
            bottom=max(MARGINS["bottom"], bottom),
        )
