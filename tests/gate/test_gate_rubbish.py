"""You cannot make the gate promote by feeding it rubbish."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gate.gate_tables import QUICK, judged, record, table, two_models

from tasks.contracts.errors import EvaluationError, SealBroken
from tasks.contracts.records import ROUGE_NAMES, Prediction
from tasks.gate.decide import decide


def test_scores_of_another_seal_are_refused() -> None:
    """Scores of different evaluation digests are never compared."""
    ours, theirs = two_models(5)
    with pytest.raises(SealBroken, match=r"monday.*tuesday"):
        decide(
            ours,
            theirs,
            QUICK,
            opponent_kind="champion",
            opponent_version=1,
            challenger_scores=record(ours, "a", seal="monday"),
            opponent_scores=record(theirs, "b", seal="tuesday"),
            base=None,
            lead3=None,
            looks=1,
        )


def _without(rows: list[Prediction], name: str) -> list[Prediction]:
    scores = {n: v for n, v in rows[3].scores.items() if n != name}
    return [*rows[:3], replace(rows[3], scores=scores), *rows[4:]]


def _with(rows: list[Prediction], value: float) -> list[Prediction]:
    return [*rows[:3], replace(rows[3], scores=rows[3].scores | {"rouge2": value}), *rows[4:]]


RUBBISH = {
    "empty": (lambda rows: [], "empty set"),
    "nan": (lambda rows: _with(rows, float("nan")), "row00003.*rouge2 is nan"),
    "infinite": (lambda rows: _with(rows, float("inf")), "rouge2 is inf"),
    "percent": (lambda rows: _with(rows, 31.4), "rouge2 is 31.4"),
    "missing metric": (lambda rows: _without(rows, "rougeLsum"), "no rougeLsum"),
    "missing row": (lambda rows: rows[:-1], "row00199"),
    "duplicate id": (lambda rows: [*rows[:-1], rows[0]], "two rows have the id 'row00000'"),
    "other document": (
        lambda rows: [replace(rows[0], document="else"), *rows[1:]],
        "row00000.*another source, document",
    ),
}


@pytest.mark.parametrize("side", ["challenger", "opponent", "base", "lead3"])
@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_stops_the_gate(kind: str, side: str) -> None:
    """An empty set, a missing row or metric, a NaN: an error, never a zero and never skipped."""
    spoil, message = RUBBISH[kind]
    ours, theirs = two_models(6, gain=0.05)
    tables = {"challenger": ours, "opponent": theirs, "base": theirs, "lead3": theirs}
    tables[side] = spoil(tables[side])
    with pytest.raises(EvaluationError, match=message):
        judged(tables["challenger"], tables["opponent"], base=tables["base"], lead3=tables["lead3"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"means": dict.fromkeys(ROUGE_NAMES, 0.9)},
        {"means": {}},
        {"rows": 7},
        {"finished_share": 0.2},
        {"length_ratio": float("nan")},
    ],
)
def test_a_record_that_does_not_fit_its_table_stops_the_gate(wrong: dict[str, object]) -> None:
    """A score record and its table must agree: one of another model decides nothing."""
    ours, theirs = two_models(7)
    with pytest.raises(EvaluationError, match="its record"):
        decide(
            ours,
            theirs,
            QUICK,
            opponent_kind="champion",
            opponent_version=1,
            challenger_scores=replace(record(ours, "a"), **wrong),  # type: ignore[arg-type]
            opponent_scores=record(theirs, "b"),
            base=None,
            lead3=None,
            looks=1,
        )


def test_few_documents_never_promote() -> None:
    """Under 20 documents that tell the models apart nothing is promoted, however large the gain."""
    draw = np.random.default_rng(0)
    scores = draw.uniform(0.1, 0.3, 19)
    decision = judged(table(scores + 0.5 + draw.uniform(0, 0.1, 19)), table(scores))
    assert decision.verdict == "INCONCLUSIVE"
    assert "only 19 documents" in decision.reasons[0]


def test_a_few_lucky_rows_among_equal_ones_never_promote() -> None:
    """Three lucky rows in two hundred equal ones are no evidence, though no resample shows a loss."""
    scores = np.full(200, 0.3)
    ours = scores.copy()
    ours[:3] = [0.5, 0.6, 0.55]
    decision = judged(table(ours), table(scores))
    assert decision.verdict == "INCONCLUSIVE"
    assert "only 3 documents" in " ".join(decision.reasons)


def test_one_document_with_most_rows_is_one_document() -> None:
    """Rows of one document do not stand in for many documents."""
    draw = np.random.default_rng(1)
    sources = ["big"] * 900 + [f"small{i}" for i in range(30)]
    scores = draw.uniform(0.1, 0.3, 930)
    ours = table(scores + draw.uniform(0.05, 0.15, 930), sources=sources)
    decision = judged(ours, table(scores, sources=sources))
    assert decision.clusters == 31
    assert decision.verdict == "INCONCLUSIVE"


def test_the_same_gain_on_every_row_is_not_believed() -> None:
    """A gain without any spread is an error of scoring, not a better model."""
    scores = np.linspace(0.1, 0.5, 100)
    decision = judged(table(scores + 0.1), table(scores))
    assert decision.verdict == "INCONCLUSIVE"
    assert "on every row alike" in " ".join(decision.reasons)


def test_looks_count_this_challenger() -> None:
    """Zero looks is a mistake of the caller."""
    ours, theirs = two_models(13)
    with pytest.raises(ValueError, match="at least 1"):
        judged(ours, theirs, looks=0)
