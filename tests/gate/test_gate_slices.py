"""Slices: what each gains, and a loss on one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from gate.gate_tables import judged, table

from tasks.contracts.recipe import Gate
from tasks.contracts.records import Prediction, from_json, to_json
from tasks.gate.slices import script_of

BY = Gate(bootstrap_samples=1000, slices=("length", "language"))
VETO = BY.model_copy(update={"slice_loss": "veto"})


def _tables(long_loss: float, rows: int = 300) -> tuple[list[Prediction], list[Prediction]]:
    """A gain of 0.05, but on the longest third a loss; a tenth of the documents is Greek."""
    draw = np.random.default_rng(3)
    scores = draw.uniform(0.3, 0.5, rows)
    gains = np.array([-long_loss if i % 3 == 2 else 0.05 for i in range(rows)])
    documents = [
        f"{'λόγος' if i % 10 == 0 else 'word'} {i} "
        + "more " * (0 if i % 10 == 0 else 10 * (i % 3))
        for i in range(rows)
    ]

    def about(values: np.ndarray) -> list[Prediction]:
        return [replace(row, document=d) for row, d in zip(table(values), documents, strict=True)]

    return about(scores + gains + draw.normal(0, 0.02, rows)), about(scores)


def test_a_loss_on_a_slice_is_reported_and_vetoes_where_asked() -> None:
    """The mean gains, long documents lose: told by default, refused under veto."""
    ours, theirs = _tables(0.04)
    told = judged(ours, theirs, BY)
    assert told.verdict == "PROMOTE"
    assert any("worse on the slice length long" in note for note in told.notes)
    refused = judged(ours, theirs, VETO)
    assert refused.verdict == "REJECT"
    assert "worse on the slice length long" in " ".join(refused.reasons)
    found = {(one.by, one.value): one for one in told.slices}
    assert found["length", "long"].gain < 0 < found["length", "short"].gain
    assert found["language", "greek"].documents == 30
    assert from_json(type(told), to_json(told)) == told


def test_a_slice_that_gains_less_vetoes_nothing() -> None:
    """A slice without a loss by more than noise stops no good model."""
    assert judged(*_tables(-0.01), VETO).verdict == "PROMOTE"


def test_small_slices_have_no_bounds_and_are_named() -> None:
    """Under 20 documents nothing is decided, and the notes say which slices."""
    decision = judged(*_tables(0.04, rows=120), VETO)
    greek = next(one for one in decision.slices if one.value == "greek")
    assert (greek.documents, greek.low, greek.high) == (12, None, None)
    assert any("language greek (12)" in note for note in decision.notes)


def test_without_slices_a_decision_is_as_before() -> None:
    """None by default."""
    decision = judged(*_tables(0.04))
    assert decision.slices == ()
    assert all(g.name != "slices_lost" for g in decision.guardrails)


def test_the_script_is_that_of_most_letters() -> None:
    """By Unicode's names; Japanese is told from Chinese by its kana."""
    texts = ["hello", "Привет", "你好", "こんにちは世界", "مرحبا", "한국어", "12 %"]
    scripts = ["latin", "cyrillic", "cjk", "japanese", "arabic", "hangul", "none"]
    assert [script_of(text) for text in texts] == scripts
