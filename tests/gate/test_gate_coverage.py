"""How often luck alone is promoted, over many simulated evaluation sets (fixed seeds)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from gate.gate_tables import table
from numpy.typing import NDArray

from tasks.contracts.recipe import Gate
from tasks.gate.bootstrap import resample
from tasks.gate.clusters import clusters
from tasks.gate.level import level
from tasks.gate.pairs import RESOLUTION, Pairs
from tasks.gate.power import standard_error
from tasks.gate.skew import skewed_low

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
# How many sets are simulated: more, and so with sharper bounds, in `make test-all` and `make test-long`.
SETS = [
    200,
    pytest.param(500, marks=pytest.mark.full),
    pytest.param(1000, marks=pytest.mark.long),
]

NO_GAIN: dict[str, Draw] = {
    "normal": lambda g, n: g.normal(0, 0.1, n),
    "like ROUGE": lambda g, n: g.beta(2, 5, n) - g.beta(1.2, 3.0, n),
    "heavy tails": lambda g, n: 0.05 * g.standard_t(3, n),
    "mostly ties": lambda g, n: np.where(g.random(n) < 0.2, g.normal(0, 0.2, n), 0),
}


def _low(
    gains: NDArray[np.float64], alpha: float, cluster: NDArray[np.int64] | None = None
) -> float:
    rounded = np.round(gains[:, None] / RESOLUTION) * RESOLUTION
    numbers = np.arange(len(gains)) if cluster is None else cluster
    return resample(Pairs(rounded, numbers), 1000, alpha, seed=0).bounds(0, alpha)[0]


def _most(share: float, count: int) -> float:
    """What a true share may show in `count` draws: three standard errors above it."""
    return share + 3 * float(np.sqrt(share * (1 - share) / count))


@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("kind", NO_GAIN)
@pytest.mark.parametrize("rows", [30, 150])
def test_equal_models_are_promoted_at_most_at_alpha(kind: str, rows: int, sets: int) -> None:
    """Of sets in which the challenger is no better, a share of alpha has its bound over zero."""
    draw = np.random.default_rng(rows)
    lucky = sum(_low(NO_GAIN[kind](draw, rows), 0.05) > 0 for _ in range(sets))
    assert lucky / sets <= _most(0.05, sets)


@pytest.mark.parametrize("sets", SETS)
def test_documents_with_several_rows_keep_alpha(sets: int) -> None:
    """Where rows of a document gain and lose together, resampling documents keeps the level."""
    draw, cluster = np.random.default_rng(1), np.repeat(np.arange(60), 5)
    lucky = naive = 0
    for _ in range(sets):
        gains = np.repeat(draw.normal(0, 0.1, 60), 5) + draw.normal(0, 0.03, 300)
        lucky += _low(gains, 0.05, cluster) > 0
        naive += _low(gains, 0.05) > 0
    assert lucky / sets <= _most(0.05, sets)
    assert naive / sets > 0.15


@pytest.mark.full
def test_looks_are_corrected_over_a_family() -> None:
    """Of eight equal challengers on one set, one or more is promoted as rarely as `level` says."""
    gate, families, looks = Gate(bootstrap_samples=1000), 200, 8
    expected = sum(gate.alpha / k**2 for k in range(1, looks + 1))
    draw = np.random.default_rng(2)
    promoted = {"correct": 0, "count": 0}
    for _ in range(families):
        gains = [NO_GAIN["normal"](draw, 60) for _ in range(looks)]
        # At a stricter level the bound is lower: only these may pass one.
        lucky = [look for look, gain in enumerate(gains, start=1) if _low(gain, gate.alpha) > 0]
        for mode in promoted:
            held = gate.model_copy(update={"looks": mode})
            promoted[mode] += any(_low(gains[look - 1], level(held, look)) > 0 for look in lucky)
    assert promoted["correct"] / families <= expected + 0.03
    assert promoted["count"] / families > 2 * expected


NEAR_COPIES = 4
FIRST_NAMES = ("Ann", "Ben", "Cid", "Dee")


def _near_copies(documents: int) -> list[str]:
    """Documents in groups of four that differ in a name, as one form filled in for four people."""
    draw = np.random.default_rng(3)
    texts = []
    for _ in range(documents):
        words = [f"w{number}" for number in draw.integers(0, 3000, 60)]
        texts += [" ".join([*words[:30], name, *words[30:]]) for name in FIRST_NAMES]
    return texts


@pytest.mark.parametrize("sets", [100, pytest.param(500, marks=pytest.mark.full)])
def test_near_copies_of_documents_keep_alpha(sets: int) -> None:
    """50 documents with 4 near-copies each, equal models: promoted at most at alpha; 21% before."""
    draw, texts = np.random.default_rng(4), _near_copies(50)
    rows = [
        replace(row, document=text) for row, text in zip(table(np.zeros(200)), texts, strict=True)
    ]
    cluster = np.array(clusters(rows))
    assert len(set(cluster.tolist())) == 50
    lucky = 0
    for _ in range(sets):
        gains = np.repeat(draw.normal(0, 0.1, 50), 4) + draw.normal(0, 0.03, 200)
        lucky += _low(gains, 0.05, cluster) > 0
    assert lucky / sets <= _most(0.05, sets)
    assert len(set(clusters(rows, near_copies=False))) == 200  # as decisions of schema 1 had it


def test_likeness_of_documents_chains() -> None:
    """A like B and B like C are one cluster, though A and C alone are not alike."""
    words = [f"w{number}" for number in range(100)]
    parts = [" ".join(words[start : start + 50]) for start in (0, 20, 40)]
    other = " ".join(f"v{number}" for number in range(50))
    rows = [
        replace(row, document=text)
        for row, text in zip(table(np.zeros(4)), [*parts, other], strict=True)
    ]
    assert clusters(rows) == [0, 0, 0, 1]


def _corrected_low(gains: NDArray[np.float64]) -> float:
    pairs = Pairs(np.round(gains[:, None] / RESOLUTION) * RESOLUTION, np.arange(len(gains)))
    low = resample(pairs, 1000, 0.05, seed=0).bounds(0, 0.05)[0]
    return skewed_low(pairs, 0, standard_error(pairs, 0), 0.05, low)


@pytest.mark.parametrize(
    "sets",
    [150, pytest.param(500, marks=pytest.mark.full), pytest.param(1000, marks=pytest.mark.long)],
)
@pytest.mark.parametrize(("rows", "share", "loss"), [(100, 0.05, 0.4), (300, 0.01, 0.6)])
def test_rare_large_losses_keep_alpha(rows: int, share: float, loss: float, sets: int) -> None:
    """From so many rows on; resamples alone promote 10% and 13%."""
    draw = np.random.default_rng(6)
    lucky = 0
    for _ in range(sets):
        little = share * loss / (1 - share) + 0.01 * draw.standard_normal(rows)
        lucky += _corrected_low(np.where(draw.random(rows) < share, -loss, little)) > 0
    assert lucky / sets <= _most(0.055, sets)


def test_a_tail_of_gains_does_not_widen_the_bound() -> None:
    """The correction only lowers it, and only for a tail of losses; ties and single clusters are left."""
    draw = np.random.default_rng(7)
    gains = np.round(draw.exponential(0.1, 200) / RESOLUTION) * RESOLUTION
    for sign, corrected in ((1, False), (-1, True)):
        pairs = Pairs(sign * gains[:, None], np.arange(200))
        low = resample(pairs, 1000, 0.05, seed=0).bounds(0, 0.05)[0]
        assert (skewed_low(pairs, 0, standard_error(pairs, 0), 0.05, low) < low) == corrected
    same = Pairs(np.full((20, 1), 0.25), np.arange(20))
    assert skewed_low(same, 0, standard_error(same, 0), 0.05, 0.25) == 0.25
    one = Pairs(np.array([[0.25], [-0.5]]), np.zeros(2, dtype=np.int64))
    assert skewed_low(one, 0, standard_error(one, 0), 0.05, -0.1) == -0.1
