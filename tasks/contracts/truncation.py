"""What did not fit: how many documents were cut or summarized in parts, how many answers cut, by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.contracts.records import Prediction


@dataclass(frozen=True)
class Cut:
    """Some of a kind of texts, and what became of them."""

    what: str  # e.g. "evaluation documents"
    done: Literal["cut", "summarized in parts"]
    count: int
    of: int
    mean: float | None = None  # tokens cut, or parts, of a text that was; None: not known
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
        said = f"{self.count:,} of {self.of:,} {self.what} ({self.share:.1%})"
        if not self.count or self.mean is None or self.largest is None:
            return said
        by = "by " if self.done == "cut" else ""
        shown = f"{self.mean:,.0f}" if self.done == "cut" else f"{self.mean:.1f}"
        return f"{said}, {by}{shown} {self.unit} on average and {self.largest:,} at most"


def of_predictions(what: str, predictions: Sequence[Prediction]) -> list[Cut]:
    """What became of the documents that a model summarized; nothing where its package did not say."""
    found = []
    if any(p.cut_tokens is not None for p in predictions):
        tokens = [p.cut_tokens for p in predictions if p.cut_tokens]
        found.append(_cut(what, "cut", tokens, len(predictions)))
    if parts := [p.parts for p in predictions if p.parts > 1]:
        found.append(_cut(what, "summarized in parts", parts, len(predictions)))
    return found


def of_training(data_report: Mapping[str, Any], metrics: Mapping[str, float]) -> list[Cut]:
    """Training documents and completions that were cut, from ingest's report and training's metrics."""
    found = []
    train = data_report.get("train", {})
    if cut := train.get("truncated_prompts"):
        tokens = cut["tokens_cut"]
        mean, largest = tokens.get("mean"), tokens["max"]
        found.append(Cut("training documents", "cut", cut["count"], train["rows"], mean, largest))
    if "truncated_rows" in metrics:
        count, of = int(metrics["truncated_rows"]), int(metrics["rows"])
        found.append(Cut("training completions", "cut", count, of))
    return found


def as_metrics(predictions: Sequence[Prediction]) -> dict[str, float]:
    """The same of one model's predictions, as numbers of a run."""
    found: dict[str, float] = {}
    for cut in of_predictions("", predictions):
        name = "cut" if cut.done == "cut" else "split"
        found |= {f"{name}_documents": cut.count, f"{name}_largest_{cut.unit}": cut.largest or 0}
        found[f"{name}_mean_{cut.unit}"] = cut.mean or 0.0
    return found


def line(cuts: Sequence[Cut]) -> str:
    """All that was cut or parted, in one line for a terminal; nothing when all fitted."""
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
