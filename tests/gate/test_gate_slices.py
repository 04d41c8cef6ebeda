"""Slices: what each gains, and a loss on one; by document, by labels of the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gate.gate_tables import judged, table

from tasks.contracts.errors import EvaluationError
from tasks.contracts.recipe import Gate, Recipe
from tasks.contracts.records import Prediction, Row, from_json, to_json
from tasks.contracts.slice_labels import Labels, write_labels
from tasks.gate.shown import BROKEN, shown
from tasks.gate.slice_members import script_of
from tasks.gate.slices import lost, slice_results
from tasks.gate.task import advice

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


TOPICS = Gate(bootstrap_samples=1000, slices=("topic",), slice_loss="veto")


def _by_topic(
    topics: list[tuple[str, ...]], loses: str, loss: float = 0.04, sources: list[str] | None = None
) -> tuple[list[Prediction], list[Prediction], Labels]:
    """A gain of 0.05, and on the rows of one topic a loss."""
    draw = np.random.default_rng(4)
    rows = len(topics)
    scores = draw.uniform(0.3, 0.5, rows)
    gains = np.array([-loss if loses in values else 0.05 for values in topics])
    ours = table(scores + gains + draw.normal(0, 0.02, rows), sources=sources)
    labels = {"topic": {f"row{n:05}": values for n, values in enumerate(topics)}}
    return ours, table(scores, sources=sources), labels


def test_a_loss_on_a_topic_vetoes() -> None:
    """By labels as by documents; a row with several topics counts in each."""
    topics: list[tuple[str, ...]] = [
        ("bills", "refunds") if n % 6 == 0 else (f"t{n % 3}",) for n in range(240)
    ]
    ours, theirs, labels = _by_topic(topics, "refunds")
    refused = judged(ours, theirs, TOPICS, labels=labels)
    assert refused.verdict == "REJECT"
    assert "; ".join(refused.reasons) == (
        "worse on the slice topic `bills`, by more than noise: rougeL changed by -0.034 on 40 documents; "
        "worse on the slice topic `refunds`, by more than noise: rougeL changed by -0.034 on 40 documents"
    )
    assert {one.value: one.rows for one in refused.slices} == {
        "bills": 40,
        "refunds": 40,
        "t0": 40,
        "t1": 80,
        "t2": 80,
    }


def test_documents_are_resampled_whole() -> None:
    """Rows of one document with labels of their own count in their slices, and as one document in each."""
    topics: list[tuple[str, ...]] = [(("a", "b")[n % 2],) for n in range(240)]
    sources = [f"doc{n // 8}" for n in range(240)]
    ours, theirs, labels = _by_topic(topics, "b", sources=sources)
    decision = judged(ours, theirs, TOPICS, labels=labels)
    assert [(one.rows, one.documents) for one in decision.slices] == [(120, 30), (120, 30)]


def test_many_slices_have_the_bounds_of_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many are computed together changes no bit."""
    topics = [(f"t{n % 7}", f"u{n % 5}") for n in range(210)]
    ours, theirs, labels = _by_topic(topics, "t1", 0.0)
    together = judged(ours, theirs, TOPICS, labels=labels).slices
    monkeypatch.setattr("tasks.gate.slices.AT_ONCE", 5)
    assert judged(ours, theirs, TOPICS, labels=labels).slices == together
    assert len([one for one in together if one.high is not None]) == 12


def test_a_note_names_a_few_of_many_small_slices() -> None:
    """A column of ids has a slice a row: the note stays one line."""
    topics: list[tuple[str, ...]] = [(f"id{n}",) for n in range(100)]
    ours, theirs, labels = _by_topic(topics, "id7")
    [note] = [n for n in judged(ours, theirs, TOPICS, labels=labels).notes if "slices of" in n]
    assert "topic `id0` (1)" in note
    assert note.endswith("and 90 more")


def test_a_reason_names_twenty_of_many_lost_slices() -> None:
    """It stands in tags and in the history."""
    topics = [tuple(f"t{t}" for t in range(24)) for _ in range(40)]
    ours, theirs, labels = _by_topic(topics, "t1")
    [reason] = [r for r in judged(ours, theirs, TOPICS, labels=labels).reasons if "slice" in r]
    assert reason.endswith("; worse on 4 more slices")
    assert reason.count("worse on the slice topic") == 20


def test_rows_without_labels_are_no_silent_slice() -> None:
    """A set of labels that lacks rows is refused, as is none at all."""
    ours, theirs = _by_topic([("a",)] * 30, "b")[:2]
    for known in ({}, {"topic": {"row00000": ("a",)}}):
        with pytest.raises(EvaluationError, match=r"labels\.json has no topic of (29|30) rows"):
            judged(ours, theirs, TOPICS, labels=known)


def test_equal_models_are_seldom_refused_for_a_slice() -> None:
    """Twelve overlapping topics and thirds of length: of 40 equal pairs at most as many as alpha explains."""
    draw, alarms = np.random.default_rng(9), 0
    gate = TOPICS.model_copy(update={"slices": ("topic", "length")})
    ids = [f"row{n:05}" for n in range(200)]
    for _ in range(40):
        scores = draw.uniform(0.2, 0.5, 200)
        ours, theirs = (table(scores + draw.normal(0, 0.06, 200)) for _ in range(2))
        topics = {i: tuple(f"t{t}" for t in draw.choice(12, 2, replace=False)) for i in ids}
        clusters = np.arange(200)
        results = slice_results(ours, theirs, clusters, gate, {"topic": topics})
        alarms += bool(lost(results))
    assert alarms <= 6  # of 40 at 5%, more come in under 1% of cases


def test_sealed_feedback_tells_no_slice_that_lost() -> None:
    """Only that a guardrail was the reason; which slices are too small to judge depends on no score."""
    topics: list[tuple[str, ...]] = [("few",) if n < 7 else (f"t{n % 3}",) for n in range(240)]
    ours, theirs, labels = _by_topic(topics, "t1")
    told = shown(judged(ours, theirs, TOPICS, labels=labels, sealed=True), None, TOPICS, 240)
    assert told.reasons == (BROKEN,)
    assert told.slices == ()
    assert told.notes == ("slices of fewer than 20 documents have no bounds: topic `few` (7)",)


def test_advice_names_slices_that_cannot_be_judged(tmp_path: Path) -> None:
    """Before anything is spent, by the rows that decide."""
    rows = [Row(f"r{n}", f"d{n}", f"text {n} of its own", ("short",)) for n in range(60)]
    (tmp_path / "evaluation.jsonl").write_text("".join(f"{to_json(row)}\n" for row in rows))
    topics = {row.id: ("a" if n < 50 else "<b>`|",) for n, row in enumerate(rows)}
    write_labels(tmp_path / "labels.json", {"topic": topics})
    recipe = Recipe.model_validate(
        {"name": "x", "data": {"train": "t.jsonl"}, "base": {"model": "b"}}
        | {"gate": {"slices": ["topic"], "feedback": "open"}}
    )
    fact = advice(tmp_path / "evaluation.jsonl", recipe).fact
    assert fact.endswith("slices of fewer than 20 documents have no bounds: topic `<b>'|` (10)")
