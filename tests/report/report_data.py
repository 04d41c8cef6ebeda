"""Report data over a small judged pair of tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gate.gate_tables import in_the_open, judged, two_models

from tasks.contracts.recipe import Gate
from tasks.contracts.records import Prediction
from tasks.contracts.truncation import Cut
from tasks.report.data import ReportData

DATA_REPORT = {
    "schema_version": 1,
    "train": {"rows": 1500, "prompt_tokens": {"p50": 207, "p95": 435, "max": 744}},
    "rejected": 3,
    "first_rejects": [{"file": "train.jsonl", "line": 17, "problem": "no <summary>"}],
    "inputs": {"data.train": {"files": [{"name": "t.jsonl", "fields": {"text": None}}]}},
}


def report_data(
    challenger: Sequence[Prediction] | None = None,
    opponent: Sequence[Prediction] | None = None,
    kind: str = "champion",
    **odd: Any,
) -> ReportData:
    """A promoted challenger's report; `odd` replaces fields."""
    ours, theirs = two_models(1, rows=60, gain=0.08)
    ours, theirs = list(challenger or ours), list(opponent or theirs)
    made = ReportData(
        name="dialogsum",
        version=3,
        headline="PROMOTED dialogsum v3: rougeL +0.080",
        metric="rougeL",
        decision=in_the_open(judged(ours, theirs, base=theirs, kind=kind)),
        challenger=ours,
        opponent=theirs,
        training_curve=[{"step": s, "loss": 4 / s, "learning_rate": 1e-3 / s} for s in range(1, 9)],
        training_metrics={"train_runtime": 180.25},
        cuts=[
            Cut("evaluation documents, challenger", "cut", 12, 60, 310.4, 1204),
            Cut("training documents", "cut", 0, 1500, 0.0, 0),
            Cut("training completions", "cut", 3, 1500),
        ],
        data_report=DATA_REPORT,
        cost={"seconds_per_step": 1.27, "peak_memory_gib": 1.42, "device": "cpu"},
        links={"MLflow run": "http://localhost:5000/#/runs/1", "Prefect flow run": "javascript:x"},
        digests={"git_commit": "abc123"},
    )
    return replace(made, **odd)


def by_loss(**odd: Any) -> ReportData:
    """A report on a challenger promoted for its loss."""
    ours, theirs = two_models(1, rows=60, gain=0.0)
    old = [replace(r, scores=r.scores | {"loss": 2 + i / 100}) for i, r in enumerate(theirs)]
    new = [
        replace(r, scores=r.scores | {"loss": 1.9 + i / 100 + (i % 5) / 50})
        for i, r in enumerate(ours)
    ]
    gate = Gate(metric="loss", bootstrap_samples=1000)
    decision = in_the_open(judged(new, old, gate, base=old, tokenizers=("t", "t")))
    return report_data(new, old, metric="loss", decision=decision, **odd)
