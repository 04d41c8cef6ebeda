"""The models of metrics in the estimate: a line each, from their parameters."""

from __future__ import annotations

from pathlib import Path

import tiny
import tiny_encoders

from tasks.costs import metric_models
from tasks.costs.hardware_speed import Speed
from tasks.serving.summarizer import parameter_count

SLOW = Speed("cpu", "a slow one", 1e9, 1e9)
REPORT = {
    "evaluation": {
        "rows": 100, "prompt_tokens": {"p50": 200, "max": 400}, "summary_tokens": {"p95": 60},
        "sequences": {"count": 100, "tokens": 26_000, "completion_tokens": 6_000},
    }
}  # fmt: skip


def test_each_named_model_has_a_line(tmp_path: Path) -> None:
    """Memory and time, called an estimate; nothing without such a model, no time on an unknown GPU."""
    nli = tiny_encoders.encoder(tmp_path / "nli", labels=tiny_encoders.LABELS)
    bert = tiny_encoders.encoder(tmp_path / "bert")
    base = tiny.prepared(tiny.make_tiny_base(tmp_path / "base"))
    recipe = tiny.make_recipe(tmp_path, gate={"nli_model": str(nli), "bertscore_model": str(bert)})
    first, second = metric_models.lines(recipe, base, REPORT, SLOW)
    millions = f"{parameter_count(nli) / 1e6:,.1f} million parameters, about 1.0 GiB and "
    assert first.startswith(f"gate.nli_model: {millions}")
    assert second.startswith("gate.bertscore_model: ")
    assert all("a rough estimate from its parameters" in line for line in (first, second))
    assert metric_models.lines(tiny.make_recipe(tmp_path), base, REPORT, SLOW) == []


def test_nli_reads_more_than_bertscore_and_larger_models_take_longer() -> None:
    """Every sentence of an output with each of its document, not two texts once."""
    rows = metric_models.RowCounts.of(REPORT["evaluation"], 512)
    nli, bertscore = (metric_models._tokens(name, rows) for name in ("nli", "bertscore"))
    assert (nli, bertscore) == (120_000, 12_000)
    small, large = (metric_models._seconds(count, nli, SLOW) for count in (10**6, 10**8))
    assert large > 50 * small / 2
