"""What `precis check` says that an evaluation set can show, tried with the gate's own bounds."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tasks.contracts.recipe import Gate
from tasks.gate.bootstrap import resample
from tasks.gate.pairs import RESOLUTION, Pairs
from tasks.gate.power import TYPICAL_SPREAD, advise


def advice_on(documents: int) -> str:
    """The fact that `precis check` prints of so many deciding documents, a row each."""
    return advise(documents, documents, 0, Gate()).fact


def promoted(documents: int, gain: float, sets: int) -> float:
    """The share of simulated sets with this true gain whose bound is over zero, at look 1."""
    draw = np.random.default_rng(documents)
    bounds = []
    for _ in range(sets):
        gains = draw.normal(gain, TYPICAL_SPREAD, documents)
        rounded = np.round(gains[:, None] / RESOLUTION) * RESOLUTION
        pairs = Pairs(rounded, np.arange(documents))
        bounds.append(resample(pairs, 1000, Gate().alpha, seed=0).bounds(0, Gate().alpha)[0])
    return float(np.mean(np.array(bounds) > 0))


@pytest.mark.parametrize("documents", [50, 200])
def test_the_gain_that_is_named_is_promoted_as_often_as_it_says(documents: int) -> None:
    """80% of 300 simulated sets, within three standard errors."""
    match = re.search(r"a gain of (\d\.\d{3}) in rougeL is promoted in 80%", advice_on(documents))
    assert match
    share = promoted(documents, float(match.group(1)), sets=300)
    assert abs(share - 0.8) < 3 * np.sqrt(0.8 * 0.2 / 300)


def test_the_number_of_documents_that_is_named_shows_a_small_gain() -> None:
    """About 620 documents show 0.010: the advice for so many names that gain."""
    match = re.search(r"about ([\d,]+) documents would show 0\.010", advice_on(200))
    assert match
    enough = int(match.group(1).replace(",", ""))
    assert "a gain of 0.010 in rougeL" in advice_on(enough)


def test_too_few_documents_are_told_before_anything_is_spent() -> None:
    """19 can never promote, which is a problem; 20 can; of a loss nothing is claimed."""
    few = advise(19, 25, 8, Gate())
    assert "19 deciding documents can never promote, 20 are the least" in few.problem
    assert "lower gate.open_share" in few.problem
    assert "open_share" not in advise(19, 25, 0, Gate(feedback="open")).problem
    assert "25 evaluation rows decide, 8 are open" in few.fact
    enough = advise(20, 25, 8, Gate())
    assert not enough.problem
    assert "is promoted in 80%" in enough.fact
    assert "known after a run" in advise(500, 500, 0, Gate(metric="loss")).fact
