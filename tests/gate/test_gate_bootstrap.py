from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gate.gate_tables import judged, table

from tasks.contracts.recipe import Gate
from tasks.gate import bootstrap
from tasks.gate.bootstrap import effective_documents, expanded_level, resample
from tasks.gate.clusters import clusters
from tasks.gate.level import level
from tasks.gate.pairs import Pairs, pair
from tasks.gate.power import rows_needed, smallest_gain, standard_error


def _pairs(gains: np.ndarray, cluster: np.ndarray | None = None) -> Pairs:
    rounded = np.round(np.tile(gains[:, None], (1, 4)) * 2**32) / 2**32
    return Pairs(rounded, np.arange(len(gains)) if cluster is None else cluster)


def test_bounds_equal_a_plain_bootstrap() -> None:
    """The vectorized resampling agrees with a loop that draws documents one set at a time."""
    draw = np.random.default_rng(3)
    cluster = np.repeat(np.arange(40), draw.integers(1, 5, 40))
    gains = draw.normal(0.01, 0.05, len(cluster))
    bounds = resample(_pairs(gains, cluster), 8_000, 0.05, seed=0).bounds(0, 0.05)
    means = []
    for _ in range(8_000):
        rows = np.concatenate([np.flatnonzero(cluster == c) for c in draw.integers(0, 40, 40)])
        means.append(gains[rows].mean())
    at = expanded_level(0.05, effective_documents(_pairs(gains, cluster), 0))
    assert bounds == pytest.approx(np.quantile(means, [at, 1 - at]), abs=8e-4)


def test_all_metrics_share_the_draws() -> None:
    """Equal gains in two metrics have equal bounds."""
    draw = np.random.default_rng(4)
    resampled = resample(_pairs(draw.normal(0, 0.1, 50)), 1000, 0.05, seed=0)
    assert resampled.bounds(0, 0.05) == resampled.bounds(3, 0.05)


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded without a trace in the result; another seed is another result."""
    pairs = _pairs(np.random.default_rng(5).normal(0, 0.1, 50))
    whole = resample(pairs, 1000, 0.05, seed=0)
    monkeypatch.setattr(bootstrap, "CHUNK_CELLS", 70)
    assert np.array_equal(resample(pairs, 1000, 0.05, seed=0).means, whole.means)
    assert not np.array_equal(resample(pairs, 1000, 0.05, seed=1).means, whole.means)


def test_repeated_rows_do_not_narrow_the_interval() -> None:
    """Ten rows of each document give the interval of the documents, not of ten times as many."""
    draw = np.random.default_rng(6)
    once = draw.normal(0.0, 0.1, 60)
    cluster = np.repeat(np.arange(60), 10)
    repeated = np.repeat(once, 10)
    documents = resample(_pairs(once), 5000, 0.05, 0).bounds(0, 0.05)
    clustered = resample(_pairs(repeated, cluster), 5000, 0.05, 0).bounds(0, 0.05)
    naive = resample(_pairs(repeated), 5000, 0.05, 0).bounds(0, 0.05)
    assert clustered == pytest.approx(documents)
    assert clustered[1] - clustered[0] > 2.5 * (naive[1] - naive[0])
    assert standard_error(_pairs(repeated, cluster), 0) == pytest.approx(
        standard_error(_pairs(once), 0)
    )


def test_copied_rows_are_one_cluster() -> None:
    """A document copied under new ids and sources is still one document."""
    rows = table([0.1, 0.2, 0.3, 0.4], sources=["a", "b", "b", "c"])
    copy = replace(rows[0], id="copy", source="z", document=f"  {rows[0].document}\n")
    bridge = replace(rows[3], id="bridge", source="z")
    assert clusters([*rows, copy]) == [0, 1, 1, 2, 0]
    assert clusters([*rows, copy, bridge]) == [0, 1, 1, 0, 0, 0]


def test_pairs_find_the_gain_of_each_row() -> None:
    """Rows are paired by id."""
    ours, theirs = table([0.5, 0.25]), table([0.25, 0.75])
    assert pair(ours[::-1], theirs).gains[:, 0].tolist() == [0.25, -0.5]


def test_the_effective_number_of_documents() -> None:
    """Equal documents count one each, ties not at all, one with nearly all rows counts for one."""
    assert effective_documents(_pairs(np.full(30, 0.1)), 0) == 30
    assert effective_documents(_pairs(np.array([0.1] * 5 + [0.0] * 95)), 0) == 5
    cluster = np.array([0] * 1000 + list(range(1, 11)))
    assert effective_documents(_pairs(np.full(1010, 0.1), cluster), 0) == pytest.approx(
        1.0, abs=0.05
    )
    assert effective_documents(_pairs(np.zeros(9)), 0) == 0


def test_small_alphas_draw_more_samples() -> None:
    """The correction for looks does not rest on a handful of resamples."""
    pairs = _pairs(np.random.default_rng(7).normal(0, 0.1, 100))
    for looks in (1, 5, 20):
        alpha = level(Gate(), looks)
        assert resample(pairs, 1000, alpha, 0).beyond(0, alpha) >= bootstrap.TAIL


def test_power_is_what_it_says() -> None:
    """The smallest gain is shown in about 80% of sets, and rows_needed rows show a smaller one."""
    draw, sd = np.random.default_rng(8), 0.1
    smallest = smallest_gain(sd / np.sqrt(150), 150, 0.05, 0.0)
    assert smallest is not None
    needed = rows_needed(150, smallest / 1.5, smallest, 0.0)
    assert needed == pytest.approx(150 * 2.25, abs=1)
    for rows, gain in ((150, smallest), (needed, smallest / 1.5)):
        won = 0
        for _ in range(250):
            pairs = _pairs(draw.normal(gain, sd, rows))
            won += resample(pairs, 1000, 0.05, 0).bounds(0, 0.05)[0] > 0
        assert won / 250 == pytest.approx(0.8, abs=0.075)


def test_power_is_unknown_where_there_is_no_noise() -> None:
    """Without spread, or with one document, nothing is claimed; no gain needs no rows."""
    assert standard_error(_pairs(np.full(9, 0.1)), 0) == 0
    assert standard_error(_pairs(np.array([0.1, 0.3]), np.zeros(2, dtype=int)), 0) == 0
    assert smallest_gain(0.0, 50, 0.05, 0.0) is None
    assert rows_needed(50, 0.0, 0.01, 0.0) is None


def test_the_decision_does_not_depend_on_min_evidence_alone() -> None:
    """Twenty good documents can be enough."""
    draw = np.random.default_rng(9)
    scores = draw.uniform(0.1, 0.3, 20)
    assert judged(table(scores + draw.uniform(0.1, 0.4, 20)), table(scores)).verdict == "PROMOTE"
