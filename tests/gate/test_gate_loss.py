"""A gate by held-out loss: lower is better, in the verdict and in every sentence about it.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate.gate_tables import in_the_open, judged, record, table
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.contracts import digest
from tasks.contracts.errors import EvaluationError, SealBroken
from tasks.contracts.formatting import headline
from tasks.contracts.recipe import Gate
from tasks.contracts.records import ROUGE_NAMES, Decision, Prediction, from_json, to_json
from tasks.gate.decay import decay_headline, decay_markdown, decide_decay
from tasks.gate.recompute import GateInputs, main, recompute
from tasks.tracking.history import HistoryRecord
from tasks.tracking.predictions_table import write_table

BY_LOSS = Gate(metric="loss", bootstrap_samples=1000)
SAME = ("tokenizer", "tokenizer")
Table = list[Prediction]


def two_models(
    fall: float, *, rouge: float = 0.0, noise: float = 0.0, rows: int = 200, seed: int = 0
) -> tuple[Table, Table]:
    """A challenger whose loss is lower by `fall` on average, and whose ROUGE changed by `rouge`."""
    draw = np.random.default_rng(seed)
    theirs = draw.normal(2.5, 0.5, rows).clip(0.1)
    ours = (theirs - fall + 0.1 * draw.standard_normal(rows)).clip(0)
    scores = draw.uniform(0.4, 0.6, (rows, len(ROUGE_NAMES)))
    swing: NDArray[np.float64] = noise * draw.standard_normal(rows)
    changed = scores + rouge + (swing - swing.mean())[:, None]
    return table(changed, losses=list(ours)), table(scores, losses=list(theirs))


def by_loss(ours: Table, theirs: Table, gate: Gate = BY_LOSS, **more: Any) -> Decision:
    return judged(ours, theirs, gate, **({"tokenizers": SAME} | more))


def test_a_lower_loss_is_a_gain_and_is_promoted() -> None:
    """The gain is the opponent's loss minus the challenger's, and the means stay losses."""
    decision = by_loss(*two_models(0.12))
    loss = decision.metrics["loss"]
    assert decision.verdict == "PROMOTE"
    assert loss.champion is not None
    assert loss.gain == pytest.approx(loss.champion - loss.challenger, abs=1e-9)
    assert 0 < loss.low < loss.gain < loss.high
    assert list(decision.metrics) == ["loss", *ROUGE_NAMES]
    assert decision.reasons == (
        f"loss fell by {loss.gain:.3f} nats a token; the fall's 95% lower bound "
        f"{loss.low:.3f} is over 0, on 200 rows of 200 documents",
    )


def test_a_higher_loss_is_rejected_though_its_number_is_larger() -> None:
    """The other way round: nothing is gained, and the sentence says that the loss rose."""
    ours, theirs = two_models(0.12)
    decision = by_loss(theirs, ours)
    assert decision.verdict == "REJECT"
    assert decision.metrics["loss"].gain < 0
    rise = -decision.metrics["loss"].gain
    assert decision.reasons == (
        f"no gain: loss rose by {rise:.3f} nats a token, promotion needs a fall",
    )


def test_min_delta_is_in_nats() -> None:
    """The fall has to exceed it: its mean or REJECT, its lower bound or INCONCLUSIVE."""
    ours, theirs = two_models(0.12)
    fall = by_loss(ours, theirs).metrics["loss"].gain
    over = by_loss(ours, theirs, BY_LOSS.model_copy(update={"min_delta": fall + 0.01}))
    assert over.verdict == "REJECT"
    assert "loss fell by 0.1" in over.reasons[0]
    assert "promotion needs more than 0.1" in over.reasons[0]
    near = by_loss(ours, theirs, BY_LOSS.model_copy(update={"min_delta": fall - 0.005}))
    assert near.verdict == "INCONCLUSIVE"


def test_a_fall_that_noise_could_explain_is_inconclusive() -> None:
    """What the set could have shown is called a fall."""
    decision = by_loss(*two_models(0.008, rows=60, seed=3))
    assert decision.metrics["loss"].gain > 0
    assert decision.verdict == "INCONCLUSIVE"
    reasons = " ".join(decision.reasons)
    assert "loss fell by 0.0" in reasons
    assert "noise could explain it: the fall's 95% lower bound -0.0" in reasons
    assert decision.smallest_gain is not None
    assert (
        f"the smallest fall these 60 rows could have shown is {decision.smallest_gain:.3f} nats"
        in reasons
    )
    assert "would show a fall of this size" in reasons


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), min_size=1, max_size=60))
def test_no_two_models_beat_each_other(losses: list[tuple[float, float]]) -> None:
    """And the one that is promoted has the lower mean loss."""
    ours, theirs = ([pair[i] for pair in losses] for i in range(2))
    flat = [0.4] * len(losses)
    first = by_loss(table(flat, losses=ours), table(flat, losses=theirs))
    second = by_loss(table(flat, losses=theirs), table(flat, losses=ours))
    assert not first.verdict == second.verdict == "PROMOTE"
    if first.verdict == "PROMOTE":
        assert sum(ours) < sum(theirs)
    if second.verdict == "PROMOTE":
        assert sum(theirs) < sum(ours)


def test_an_equal_loss_keeps_the_champion() -> None:
    """A tie, reported as one."""
    ours, _ = two_models(0.1)
    decision = by_loss(ours, ours)
    assert decision.verdict == "REJECT"
    assert decision.reasons == ("no gain: loss did not change, promotion needs a fall",)


@pytest.mark.parametrize(
    ("rouge", "noise", "rows", "verdict"),
    [
        (0.0, 0.08, 200, "PROMOTE"),  # too few rows to show it to be within 0.005
        (-0.004, 0.001, 200, "PROMOTE"),
        (-0.02, 0.08, 50, "INCONCLUSIVE"),
        (-0.02, 0.01, 200, "REJECT"),
    ],
)
def test_rouge_beside_a_loss_guards_against_outputs_that_broke(
    rouge: float, noise: float, rows: int, verdict: str
) -> None:
    """A measured ROUGE loss over the margin counts; that there is none need not be shown."""
    decision = by_loss(*two_models(0.12, rouge=rouge, noise=noise, rows=rows))
    assert decision.verdict == verdict
    assert (decision.metrics["rouge1"].low < -0.005) == (noise > 0.05 or rouge < -0.01)
    guardrails = {g.name: g for g in decision.guardrails}
    for name in ROUGE_NAMES:
        assert guardrails[name].value == decision.metrics[name].gain
        assert guardrails[name].bound == ">= -0.005"
        assert guardrails[name].held == (verdict == "PROMOTE")
    if verdict != "PROMOTE":
        assert "rouge1 changed by -0.020, a loss over the margin of 0.005" in decision.reasons[0]
        assert ("noise could explain it" in decision.reasons[0]) == (verdict == "INCONCLUSIVE")


def test_the_other_guardrails_hold_as_ever() -> None:
    """A lower loss does not excuse outputs without an end."""
    ours, theirs = two_models(0.12)
    rambling = [replace(row, finished=False) for row in ours]
    assert by_loss(rambling, theirs).verdict == "REJECT"


def test_lead3_has_no_loss_and_a_base_that_beats_the_champion_is_named() -> None:
    """Copied sentences have no probability: nothing is shown. A lower loss of the base is noted."""
    ours, theirs = two_models(0.12)
    copied = [replace(r, scores=dict.fromkeys(ROUGE_NAMES, 0.3)) for r in theirs]
    lower = [replace(r, scores=r.scores | {"loss": 0.5}) for r in theirs]
    decision = by_loss(ours, theirs, lead3=copied, base=lower)
    assert decision.verdict == "PROMOTE"
    assert decision.metrics["loss"].lead3 is None
    assert decision.metrics["rougeL"].lead3 == pytest.approx(0.3)
    assert "loss of 2.3" in decision.notes[0]
    assert decision.notes[0].endswith("is above 0.500 of the untuned base")
    assert by_loss(ours, theirs, lead3=copied, base=theirs).notes == ()


@pytest.mark.parametrize("side", ["challenger", "opponent", "base"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "no loss"),
        (float("nan"), "loss is nan"),
        (float("inf"), "loss is inf"),
        (-0.1, "loss is -0.1, not a number of 0 or more"),
    ],
)
def test_a_loss_that_is_none_stops_the_gate(side: str, value: float | None, says: str) -> None:
    """Missing, not finite or below zero: an error, on either side and in what is shown."""
    ours, theirs = two_models(0.12)
    tables: dict[str, Table] = {"challenger": ours, "opponent": theirs, "base": theirs}
    scores = {n: v for n, v in tables[side][5].scores.items() if n != "loss"}
    spoiled = replace(tables[side][5], scores=scores | ({} if value is None else {"loss": value}))
    tables[side] = [*tables[side][:5], spoiled, *tables[side][6:]]
    with pytest.raises(EvaluationError, match=f"row 'row00005': {says}"):
        by_loss(tables["challenger"], tables["opponent"], base=tables["base"])


def test_a_record_of_another_loss_stops_the_gate() -> None:
    """The record's mean loss is checked against the table like every other mean."""
    from tasks.gate.pairs import check_table

    ours, _ = two_models(0.12)
    stored = record(ours, "m")
    wrong = replace(stored, means=stored.means | {"loss": 1.0})
    with pytest.raises(EvaluationError, match=r"gives loss 1\.0, its table 2\."):
        check_table("challenger", ours, wrong, ("loss",))


def test_a_loss_of_a_huge_size_is_a_number() -> None:
    """A broken opponent may well have lost hundreds of nats a token."""
    ours, theirs = two_models(0.12)
    lost = [replace(r, scores=r.scores | {"loss": 300.0 + i / 7}) for i, r in enumerate(theirs)]
    assert by_loss(ours, lost).verdict == "PROMOTE"


@pytest.mark.parametrize(
    ("tokenizers", "says"),
    [
        (
            ("a" * 64, "b" * 64),
            "tokenizer .aaaaaaaaaaaaaaaa.* is not the champion's .bbbbbbbbbbbbbbbb",
        ),
        (("a", ""), "the tokenizer of the champion's loss was not recorded"),
        (("", "b"), "the tokenizer of the challenger's loss was not recorded"),
    ],
)
def test_losses_of_two_tokenizers_are_never_compared(
    tokenizers: tuple[str, str], says: str
) -> None:
    """A loss a token of longer tokens is larger, and says nothing; the error says how to fix it."""
    with pytest.raises(SealBroken, match=says):
        by_loss(*two_models(0.12), tokenizers=tokenizers)


def test_rouge_compares_across_tokenizers() -> None:
    """Texts are compared by their words: another tokenizer is no obstacle there."""
    ours, theirs = two_models(0.12, rouge=0.05)
    decision = judged(ours, theirs, Gate(bootstrap_samples=1000), tokenizers=("a", "b"))
    assert list(decision.metrics) == list(ROUGE_NAMES)


def test_the_headline_cannot_be_read_the_wrong_way() -> None:
    """The loss's own change, and which way is better."""
    ours, theirs = two_models(0.12)
    won, lost = by_loss(ours, theirs), by_loss(theirs, ours)
    loss = won.metrics["loss"]
    assert headline(in_the_open(won), "qa", 3, "loss") == (
        f"PROMOTED qa v3: loss -{loss.gain:.3f} [-{loss.high:.3f}, -{loss.low:.3f}] "
        "(lower is better)"
    )
    loss = lost.metrics["loss"]
    assert headline(in_the_open(lost), "qa", None, "loss") == (
        f"REJECTED qa: loss +{-loss.gain:.3f} [{-loss.high:.3f}, {-loss.low:.3f}] "
        "(lower is better), champion v2 stays"
    )


def test_the_history_says_the_same() -> None:
    """Its record holds gains, its line the loss's change."""
    record = HistoryRecord(
        kind="promotion",
        time="2026-11-21",
        name="qa",
        verdict="PROMOTE",
        reasons=(),
        version=3,
        opponent_version=2,
        metric="loss",
        gain=0.12,
        low=0.1,
        high=0.14,
        looks=1,
        evaluation_digest="seal",
        model_digest="model",
        mlflow_run_id="run",
    )
    assert record.line() == (
        "2026-11-21  promoted v3  loss -0.1200 [-0.1400, -0.1000] (lower is better) against v2, look 1"
    )
    assert (
        replace(record, metric="rougeL")
        .line()
        .endswith("rougeL +0.1200 [+0.1000, +0.1400] against v2, look 1")
    )


def test_a_stored_decision_by_loss_is_recomputed_exactly(tmp_path: Path) -> None:
    """From the tables with their column `loss`, to the last bit; lead-3's table has none."""
    ours, theirs = two_models(0.12)
    copied = [replace(r, scores=dict.fromkeys(ROUGE_NAMES, 0.3)) for r in theirs]
    tables = {"challenger": ours, "opponent": theirs, "base": theirs, "lead3": copied}
    for name, rows in tables.items():
        write_table(tmp_path / f"{name}.json", rows)
    scores = {
        name: replace(
            record(tables[name], name, tokenizer="t"),
            table_digest=digest.of_file(tmp_path / f"{name}.json"),
        )
        for name in ("challenger", "opponent")
    }
    inputs = GateInputs(BY_LOSS, "champion", 2, 1, scores)
    decision = by_loss(ours, theirs, base=theirs, lead3=copied, digests=("challenger", "opponent"))
    (tmp_path / "gate_inputs.json").write_text(to_json(inputs))
    (tmp_path / "decision.json").write_text(to_json(decision))
    assert recompute(tmp_path) == decision
    assert from_json(Decision, to_json(decision)) == decision
    assert main([str(tmp_path)]) == 0


def _fresh(losses: Sequence[float], prefix: str) -> Table:
    flat = table([0.4] * len(losses), losses=losses)
    return [
        replace(r, id=prefix + r.id, source=prefix + r.source, document=prefix + r.document)
        for r in flat
    ]


@pytest.mark.parametrize(("rise", "verdict"), [(0.3, "DECAYED"), (-0.3, "STEADY")])
def test_a_champion_whose_loss_rose_has_decayed(rise: float, verdict: str) -> None:
    """And one whose loss fell has not: `drop` is positive where it got worse."""
    draw = np.random.default_rng(0)
    before = _fresh(list(draw.normal(2, 0.1, 100)), "s")
    now = _fresh(list(draw.normal(2 + rise, 0.1, 100)), "f")
    decay = decide_decay(
        before,
        now,
        BY_LOSS,
        0.01,
        champion_version=3,
        sealed_scores=record(before, "m", seal="sealed"),
        fresh_scores=record(now, "m", seal="fresh"),
    )
    assert decay.verdict == verdict
    assert decay.drop == pytest.approx(decay.fresh.mean - decay.sealed.mean)
    assert decay.low < decay.drop < decay.high
    moved = (
        f"loss {'rose' if rise > 0 else 'fell'} by {abs(decay.drop):.3f} nats a token; the rise's"
    )
    assert decay.reasons[0].startswith(moved)
    text = decay_headline(decay, "qa")
    assert f"; rise {decay.drop:+.3f} [" in text
    assert text.endswith("(lower is better)")
    assert f"| rise | {decay.drop:+.4f} [" in decay_markdown(decay, "qa")
