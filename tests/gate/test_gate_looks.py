"""Later challengers of one champion pay only for errors that no earlier look has paid for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from gate.gate_tables import judged, table

from tasks.contracts.recipe import Gate
from tasks.contracts.records import Decision, Prediction, to_json
from tasks.gate.bootstrap import Resampled, expanded_level, level_of_expanded, resample
from tasks.gate.earlier_looks import EarlierLook, Spent, look_of
from tasks.gate.level import level
from tasks.gate.pairs import RESOLUTION, Pairs
from tasks.gate.task import OWN, _earlier
from tasks.tracking import connection, history, mlflow_run

ROWS, NOISE = 100, 0.05
Rows = list[Prediction]


def models(seed: int, count: int, rows: int = ROWS) -> list[Rows]:
    """Equal models: each has its own noise on the same documents."""
    draw = np.random.default_rng(seed)
    quality = draw.beta(4, 8, rows) * 0.5 + 0.2
    return [
        table(np.clip(quality + NOISE * draw.standard_normal(rows), 0, 1)) for _ in range(count)
    ]


def series(
    champion: Rows, challengers: list[Rows], gate: Gate, joint: bool = True
) -> list[Decision]:
    """All challengers against one champion, each with the scores of those before it."""
    earlier: list[EarlierLook] = []
    decisions = []
    for number, rows in enumerate(challengers, start=1):
        digests = (f"model{number}", "champion")
        known = earlier if joint else ()
        decision = judged(rows, champion, gate, looks=number, earlier=known, digests=digests)
        earlier.append(look_of(decision, gate.metric, rows, champion))
        decisions.append(decision)
    return decisions


def test_no_look_is_held_to_more_than_alone() -> None:
    """Its level is alpha/k^2 at least and alpha at most, and its bound never below the one alone."""
    champion, *challengers = models(1, 7)
    gate = Gate(bootstrap_samples=2000)
    joint = series(champion, challengers, gate)
    alone = series(champion, challengers, gate, joint=False)
    assert joint[0] == alone[0]
    for number, (one, other) in enumerate(zip(joint[1:], alone[1:], strict=True), start=2):
        assert level(gate, number) == other.alpha < one.alpha <= gate.alpha
        assert one.metrics["rougeL"].low >= other.metrics["rougeL"].low
        assert one.metrics["rouge1"] == other.metrics["rouge1"]
    assert joint[4].alpha > 1.5 * alone[4].alpha


def test_a_copy_of_an_earlier_challenger_pays_for_what_is_left() -> None:
    """The same scores under another digest: both errors are one, so the levels add up, to alpha at most."""
    champion, challenger = models(2, 2)
    gate = Gate(alpha=0.04, bootstrap_samples=20_000)
    first, second = series(champion, [challenger] * 2, gate)
    assert (first.alpha, second.alpha) == (0.04, 0.04)
    half = Gate(alpha=0.04, bootstrap_samples=20_000)
    look = look_of(first, "rougeL", challenger, champion)
    strict = judged(
        challenger, champion, half, looks=4, digests=("late", "champion"),
        earlier=[replace(look, looks=3, low=-1.0)],
    )  # fmt: skip
    assert strict.alpha == pytest.approx(0.04 / 16, rel=0.1)  # nothing was spent by a bound of -1


@pytest.mark.parametrize(
    "families",
    [30, pytest.param(200, marks=pytest.mark.full), pytest.param(600, marks=pytest.mark.long)],
)
def test_families_of_equal_models_err_at_most_as_often_as_promised(families: int) -> None:
    """The sum of alpha/k^2 over five looks, within three standard errors; late looks gain by it."""
    gate, rows, looks = Gate(bootstrap_samples=1000), 60, 5
    draw, promised = np.random.default_rng(5), sum(level(gate, k + 1) for k in range(looks))
    promoted, levels = 0, []
    for _ in range(families):
        scores = np.round(0.1 * draw.standard_normal((rows, looks + 1)) / RESOLUTION) * RESOLUTION
        gains, lows = scores[:, 1:] - scores[:, :1], np.zeros(0)
        for look in range(looks):
            pairs, own = Pairs(gains[:, look : look + 1], np.arange(rows)), level(gate, look + 1)
            resampled = resample(pairs, 1000, own, 0, Spent(gains[:, :look], lows))
            alpha = resampled.level_with(0, own, gate.alpha)
            lows = np.append(lows, resampled.bounds(0, alpha)[0])
        levels.append(alpha)
        promoted += bool((lows > 0).any())
    assert promoted / families <= promised + 3 * np.sqrt(promised * (1 - promised) / families)
    assert np.median(levels) > 1.5 * level(gate, looks)


def _look() -> tuple[Rows, Rows, EarlierLook]:
    champion, first, second = models(3, 3)
    decision = judged(first, champion, digests=("first", "old"))
    return second, champion, look_of(decision, "rougeL", first, champion)


@pytest.mark.parametrize(
    "change",
    [{"opponent": "another champion"}, {"rows": "other rows"}, {"challenger": "new", "looks": 1}],
    ids=["another champion", "other rows", "the challenger itself at an earlier look"],
)
def test_what_cannot_be_compared_is_not_used(change: dict[str, str | int]) -> None:
    """Such a look counts in full: alpha/k^2, and the decision says so."""
    challenger, champion, look = _look()
    used = judged(challenger, champion, looks=2, earlier=[look])
    assert used.alpha > 0.05 / 4
    assert not any("not at hand" in note for note in used.notes)
    decision = judged(challenger, champion, looks=2, earlier=[replace(look, **change)])  # type: ignore[arg-type]  # fields by name
    assert decision.alpha == 0.05 / 4
    assert any("the scores of 1 earlier challengers are not at hand" in n for n in decision.notes)


def test_counting_only_uses_no_earlier_look() -> None:
    """Where looks are not corrected there is nothing to share."""
    challenger, champion, look = _look()
    gate = Gate(bootstrap_samples=1000, looks="count")
    assert judged(challenger, champion, gate, looks=2, earlier=[look]).alpha == 0.05


@pytest.mark.parametrize("alpha", [0.05, 0.0125, 0.0001])
@pytest.mark.parametrize("evidence", [20.0, 200.0])
def test_a_level_is_found_again_from_its_share(alpha: float, evidence: float) -> None:
    """level_of_expanded is the inverse of expanded_level."""
    assert level_of_expanded(expanded_level(alpha, evidence), evidence) == pytest.approx(alpha)


def test_all_spent_leaves_the_widest_bound() -> None:
    """Where every resample is beyond an earlier bound, the level is the largest allowed."""
    means = np.sort(np.random.default_rng(0).normal(size=(1000, 1)), axis=0)
    assert Resampled(means, (100.0,), means[:0]).level_with(0, 0.01, 0.05) == 0.05


def test_looks_of_earlier_runs_are_found(home_with_store: Path, tmp_path: Path) -> None:
    """Of runs against the same champion on the same rows; deleted runs and those without are not at hand."""
    client = connection.connect()
    _, _, look = _look()
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / OWN).write_text(to_json(look))
    kept = []
    for number, (opponent, stored) in enumerate(
        [("old", True), ("old", True), ("old", False), ("another", True)]
    ):
        with mlflow_run.run_for("demo", f"flow run {number}", {}) as run:
            history.count_look(run, f"m{number}", "rougeL", opponent, "rows", ["a document"])
            if stored:
                run.log_folder(tmp_path / "gate", "gate")
            kept.append(run.id)
    client.delete_run(kept[1])
    with mlflow_run.run_for("demo", "flow run of the next", {}) as run:
        assert history.count_look(run, "next", "rougeL", "old", "rows", ["a document"]) == 4
        assert _earlier(run, "old", "rows") == [look]
    mlflow.set_tracking_uri(None)
