"""What did not fit, and by how much: documents cut or summarized in parts, completions cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.contracts.records import Prediction


@dataclass(frozen=True)
class Cut:
    """How many texts of a kind were cut, or summarized in parts, and by how much."""

    what: str  # e.g. "evaluation documents"
    done: Literal["cut", "summarized in parts"]
    count: int
    of: int
    mean: float | None = None  # tokens cut, or parts, of those texts; None: not known
    largest: int | None = None

    @property
    def share(self) -> float:
        """Of all texts of that kind."""
        return self.count / self.of if self.of else 0.0

    @property
    def unit(self) -> str:
        """What `mean` and `largest` count."""
        return "tokens" if self.done == "cut" else "parts"

    def text(self) -> str:
        """`12 of 200 evaluation documents (6.0%), by 310 tokens on average and 1,204 at most`."""
        counts = f"{self.count:,} of {self.of:,} {self.what} ({self.share:.1%})"
        if not self.count or self.mean is None or self.largest is None:
            return counts
        by = "by " if self.done == "cut" else ""
        mean = f"{self.mean:,.0f}" if self.done == "cut" else f"{self.mean:.1f}"
        return f"{counts}, {by}{mean} {self.unit} on average and {self.largest:,} at most"


def of_predictions(what: str, predictions: Sequence[Prediction]) -> list[Cut]:
    """Of a model's documents those that did not fit; empty when its package does not count them."""
    cuts = []
    if any(p.cut_tokens is not None for p in predictions):
        tokens = [p.cut_tokens for p in predictions if p.cut_tokens]
        cuts.append(_cut(what, "cut", tokens, len(predictions)))
    if parts := [p.parts for p in predictions if p.parts > 1]:
        cuts.append(_cut(what, "summarized in parts", parts, len(predictions)))
    return cuts


def of_training(data_report: Mapping[str, Any], metrics: Mapping[str, float]) -> list[Cut]:
    """Training documents and completions that were cut, from ingest's report and training's metrics."""
    cuts = []
    train = data_report.get("train", {})
    if cut := train.get("truncated_prompts"):
        tokens = cut["tokens_cut"]
        mean, largest = tokens.get("mean"), tokens["max"]
        cuts.append(Cut("training documents", "cut", cut["count"], train["rows"], mean, largest))
    if "truncated_rows" in metrics:
        count, of = int(metrics["truncated_rows"]), int(metrics["rows"])
        cuts.append(Cut("training completions", "cut", count, of))
    return cuts


def as_metrics(predictions: Sequence[Prediction]) -> dict[str, float]:
    """`of_predictions` of one model, as metrics of a run."""
    metrics: dict[str, float] = {}
    for cut in of_predictions("", predictions):
        name = "cut" if cut.done == "cut" else "split"
        metrics |= {f"{name}_documents": cut.count, f"{name}_largest_{cut.unit}": cut.largest or 0}
        metrics[f"{name}_mean_{cut.unit}"] = cut.mean or 0.0
    return metrics


def line(cuts: Sequence[Cut]) -> str:
    """All that did not fit, in one line for a terminal; empty when everything fitted."""
    parts = []
    for done in ("cut", "summarized in parts"):
        if texts := [cut.text() for cut in cuts if cut.done == done and cut.count]:
            parts.append(f"{done}: {'; '.join(texts)}")
    return " | ".join(parts)


def _cut(
    what: str, done: Literal["cut", "summarized in parts"], sizes: Sequence[int], of: int
) -> Cut:
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    return Cut(what, done, len(sizes), of, mean, max(sizes, default=0))
