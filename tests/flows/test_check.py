"""What precis check says of a base: all that is known of it here, and nothing of what is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import tiny

from flows.check import Checked, check

ROWS = [
    {
        "document": f"Ann: shall we meet at {i}?\nBob: no, at {i + 1}.",
        "summary": f"They meet at {i + 1}.",
    }
    for i in range(80)
]


@pytest.fixture
def data(home: Path) -> Iterator[Path]:
    path = home / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    yield path
    mlflow.set_tracking_uri(None)


def checked(data: Path, gate: dict[str, object] | None = None, **base: object) -> Checked:
    parts = {"train": str(data), "evaluation_share": 0.5}
    training = {"max_length": 1024}
    gate_part = {"gate": gate} if gate else {}
    return check(
        tiny.make_recipe(Path("unused"), data=parts, base=base, training=training, **gate_part)
    )


def test_of_a_hub_base_that_is_not_here_nothing_is_guessed(data: Path) -> None:
    """Offline: one problem, about the base; rows are counted; no memory, disk or context is named."""
    report = checked(data, model="meta-llama/Llama-2-7b-hf", revision="0" * 40, rope=None)
    assert len(report.problems) == 1
    assert "meta-llama/Llama-2-7b-hf at revision 000" in report.problems[0]
    names = [line.partition(":")[0] for line in report.facts]
    assert names == ["data", "data.train", "gate", "registry"]
    unpinned = checked(data, model="meta-llama/Llama-2-7b-hf")
    assert "pin it with base.revision" in unpinned.problems[0]


def test_a_scaled_base_is_checked_as_it_will_run(data: Path, tmp_path: Path) -> None:
    """Its longer rows are what memory is counted for; the check leaves no folder behind."""
    base = tiny.make_tiny_base(tmp_path / "base", context=512)
    report = checked(data, model=str(base), context_tokens=1024, rope="ntk")
    assert report.problems == []
    assert any("documents of 1024 tokens at once" in line for line in report.facts)
    assert not (tmp_path / "mlruns/work/scaled").exists()
    refused = checked(data, model=str(base), context_tokens=1024)
    assert "is past the 512 tokens" in refused.problems[0]


def test_a_set_that_can_never_promote_is_refused(data: Path, tmp_path: Path) -> None:
    """Fewer than 20 deciding documents, by the rows that are there; how many decide and are open is told."""
    base = tiny.make_tiny_base(tmp_path / "base", context=512)
    report = checked(data, {"open_share": 0.9}, model=str(base))
    (problem,) = report.problems
    assert "deciding documents can never promote, 20 are the least" in problem
    assert "lower gate.open_share" in problem
    assert any("evaluation rows decide" in fact and "are open" in fact for fact in report.facts)
    wide = checked(data, {"feedback": "open"}, model=str(base))
    assert wide.problems == []
    assert any("is promoted in 80% of cases at look 1" in fact for fact in wide.facts)
