"""Decay: the champion's fresh scores against its sealed ones, as a pure function."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from gate_tables import QUICK, record, table

from tasks.contracts.errors import EvaluationError
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Prediction, from_json, to_json
from tasks.gate.decay import Decay, bounds, decay_headline, decay_markdown, decide_decay

ALLOWED = 0.01


def rows(scores: object, prefix: str, sources: list[str] | None = None) -> list[Prediction]:
    """A table whose ids and documents are its own."""
    return [
        dataclasses.replace(
            row,
            id=f"{prefix}{row.id}",
            source=f"{prefix}{row.source}",
            document=f"{prefix} {row.document}",
        )
        for row in table(scores, sources=sources)  # type: ignore[arg-type]
    ]


def around(mean: float, count: int, seed: int, spread: float = 0.05) -> list[float]:
    draw = np.random.default_rng(seed)
    return list(np.clip(draw.normal(mean, spread, count), 0, 1))


def judged(
    sealed: list[Prediction],
    fresh: list[Prediction],
    allowed: float = ALLOWED,
    gate: Gate = QUICK,
    models: tuple[str, str] = ("m", "m"),
) -> Decay:
    return decide_decay(
        sealed,
        fresh,
        gate,
        allowed,
        champion_version=3,
        sealed_scores=record(sealed, models[0], seal="sealed"),
        fresh_scores=record(fresh, models[1], seal="fresh"),
    )


def test_a_clear_drop_is_decay() -> None:
    """Its lower bound is over what is allowed, and the numbers are in the reason."""
    decay = judged(rows(around(0.8, 200, 1), "s"), rows(around(0.7, 100, 2), "f"))
    assert decay.verdict == "DECAYED"
    assert ALLOWED < decay.low < decay.drop < decay.high
    assert decay.drop == pytest.approx(0.1, abs=0.02)
    assert "lower bound" in decay.reasons[0]
    assert (decay.sealed.rows, decay.fresh.rows, decay.fresh.documents) == (200, 100, 100)
    assert (decay.sealed.evaluation_digest, decay.fresh.evaluation_digest) == ("sealed", "fresh")


def test_the_same_quality_is_steady() -> None:
    """With enough rows and little spread, a drop over the allowed one is excluded."""
    sealed, fresh = rows(around(0.8, 300, 1, 0.02), "s"), rows(around(0.8, 300, 2, 0.02), "f")
    decay = judged(sealed, fresh)
    assert decay.verdict == "STEADY"
    assert decay.high <= ALLOWED


def test_a_champion_that_got_better_is_steady() -> None:
    """A negative drop is no decay."""
    decay = judged(rows(around(0.6, 100, 1), "s"), rows(around(0.8, 100, 2), "f"))
    assert (decay.verdict, decay.drop < 0) == ("STEADY", True)


def test_noise_is_inconclusive() -> None:
    """A drop that is neither shown nor excluded."""
    decay = judged(rows(around(0.80, 40, 1, 0.2), "s"), rows(around(0.78, 40, 2, 0.2), "f"))
    assert decay.verdict == "INCONCLUSIVE"
    assert decay.low <= ALLOWED < decay.high
    assert "neither shown" in decay.reasons[0]


@pytest.mark.parametrize(("sealed", "fresh"), [(19, 200), (200, 19), (5, 5), (1, 1)])
def test_too_few_documents_on_either_side_are_inconclusive(sealed: int, fresh: int) -> None:
    """Even when every score has fallen to zero."""
    decay = judged(rows([0.9] * sealed, "s"), rows([0.0] * fresh, "f"))
    assert decay.verdict == "INCONCLUSIVE"
    assert all("under 20" in reason for reason in decay.reasons)
    assert judged(rows([0.9] * 20, "s"), rows([0.0] * 20, "f")).verdict == "DECAYED"


def test_many_rows_of_few_documents_are_few() -> None:
    """A hundred rows of ten documents are ten pieces of evidence; so is one document with most rows."""
    sealed = rows(around(0.9, 100, 1), "s")
    ten = rows(around(0.5, 100, 2), "f", [f"doc{i % 10}" for i in range(100)])
    assert judged(sealed, ten).verdict == "INCONCLUSIVE"
    heavy = rows(around(0.5, 100, 2), "f", [f"doc{max(0, i - 60)}" for i in range(100)])
    decay = judged(sealed, heavy)
    assert (decay.verdict, decay.fresh.documents) == ("INCONCLUSIVE", 40)


def test_clusters_widen_the_bounds() -> None:
    """Rows of one document move together, so they say less than as many documents."""
    scores, sealed = np.repeat(around(0.7, 30, 2, 0.1), 5), rows(around(0.8, 150, 1), "s")
    alone = judged(sealed, rows(scores, "f"))
    together = judged(sealed, rows(scores, "f", [f"doc{i // 5}" for i in range(150)]))
    assert together.drop == pytest.approx(alone.drop)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_a_tie_is_steady_and_the_limit_itself_is_allowed() -> None:
    """Equal scores everywhere: no drop, no spread. A drop of exactly the allowed size is no decay."""
    same = judged(rows([0.5] * 30, "s"), rows([0.5] * 40, "f"), allowed=0.0)
    assert (same.verdict, same.drop, same.low, same.high) == ("STEADY", 0.0, 0.0, 0.0)
    assert judged(rows([0.75] * 30, "s"), rows([0.5] * 30, "f"), allowed=0.25).verdict == "STEADY"
    # 0.3 - 0.2 is under 0.1 in floating point, 0.3 - 0.1 over 0.2
    assert judged(rows([0.3] * 30, "s"), rows([0.2] * 30, "f"), allowed=0.1).verdict == "STEADY"
    assert judged(rows([0.3] * 30, "s"), rows([0.1] * 30, "f"), allowed=0.2).verdict == "STEADY"


def test_the_decision_is_deterministic_and_blind_to_row_order() -> None:
    """The same tables in any order give the same bits; the seed is part of the settings."""
    sealed, fresh = rows(around(0.8, 60, 1), "s"), rows(around(0.78, 50, 2), "f")
    first = judged(sealed, fresh)
    shuffle = random.Random(0)
    for _ in range(3):
        shuffle.shuffle(sealed)
        shuffle.shuffle(fresh)
        assert judged(sealed, fresh) == first
    other = judged(sealed, fresh, gate=Gate(bootstrap_samples=1000, seed=1))
    assert (other.low, other.high) != (first.low, first.high)
    assert from_json(Decay, to_json(first)) == first


def test_what_cannot_be_compared_is_refused() -> None:
    """Two models, a document on both sides, an empty side."""
    sealed, fresh = rows(around(0.8, 30, 1), "s"), rows(around(0.8, 30, 2), "f")
    with pytest.raises(EvaluationError, match="score one model on both"):
        judged(sealed, fresh, models=("m", "other"))
    with pytest.raises(EvaluationError, match="30 documents are in the evaluation set and"):
        judged(sealed, sealed)
    with pytest.raises(EvaluationError, match="fresh rows: no evaluation rows"):
        judged(sealed, [])


@pytest.mark.parametrize("sets", [150, pytest.param(500, marks=pytest.mark.full)])
@pytest.mark.parametrize("sizes", [(30, 30), (200, 25)])
def test_a_steady_champion_is_called_decayed_at_most_at_alpha(
    sizes: tuple[int, int], sets: int
) -> None:
    """Of sets with no true drop, a share of alpha has its lower bound over zero; likewise above."""
    draw, gate = np.random.default_rng(7), Gate(bootstrap_samples=1000)
    lower = upper = 0
    for _ in range(sets):
        sealed, fresh = (rows(draw.beta(5, 2, n), p) for n, p in zip(sizes, "sf", strict=True))
        low, high, _ = bounds(sealed, fresh, gate)
        lower, upper = lower + (low > 0), upper + (high < 0)
    most = 0.05 + 3 * np.sqrt(0.05 * 0.95 / sets)
    assert lower / sets <= most
    assert upper / sets <= most


def test_the_headline_holds_the_numbers() -> None:
    """One line, and a page that starts with it."""
    decay = judged(rows([0.837] * 200, "s"), rows([0.831] * 120, "f"))
    headline = decay_headline(decay, "demo")
    assert headline == (
        "STEADY demo v3: rougeL 0.831 on 120 fresh rows, 0.837 on the 200 of the evaluation set; "
        "drop +0.006 [0.006, 0.006]"
    )
    page = decay_markdown(decay, "demo")
    assert page.startswith(f"**{headline}**")
    assert "| fresh rows | 0.8310 | 120 | 120 |" in page
