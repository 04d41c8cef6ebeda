"""ROUGE in `evaluate`'s own form: `evaluate.load("tasks/evaluate/rouge")` asks no hub for code.

The numbers are scoring.py's, which the flow calls directly: importing `evaluate` takes six seconds.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import datasets
import evaluate

from .porter import stem
from .scoring import NAMES, score_pairs

__all__ = [
    "Rouge",
    "stem",
]  # `evaluate` copies the files that this one imports, and no further ones

CITATION = """\
@inproceedings{lin-2004-rouge,
  title = "{ROUGE}: A Package for Automatic Evaluation of Summaries",
  author = "Lin, Chin-Yew",
  booktitle = "Text Summarization Branches Out",
  year = "2004"
}
"""
DESCRIPTION = "ROUGE-1, -2, -L and -Lsum (F1), equal to rouge_score 0.1.2."
INPUTS = """\
predictions: list of texts to score.
references: for each prediction a text, or a list of texts of which the best match counts.
use_aggregator: True (default) gives each ROUGE's mean; False a list, one score a prediction.
use_stemmer: True strips word endings (Porter) before matching; default False.
"""


class Rouge(evaluate.Metric):  # type: ignore[misc]
    """ROUGE F1. Unlike the hub's module its aggregate is the mean itself, not a resampled one."""

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": [text]}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str] | list[list[str]],
        use_aggregator: bool = True,
        use_stemmer: bool = False,
    ) -> dict[str, Any]:
        scores = score_pairs(predictions, references, use_stemmer)
        columns = {name: [by_name[name] for by_name in scores] for name in NAMES}
        if not use_aggregator:
            return columns
        return {name: fmean(column) for name, column in columns.items()}
