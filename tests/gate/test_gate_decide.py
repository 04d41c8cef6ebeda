from __future__ import annotations

from dataclasses import replace

import pytest
from gate.gate_tables import QUICK, in_the_open, judged, table, two_models
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.contracts.formatting import headline
from tasks.contracts.recipe import Gate
from tasks.contracts.records import ROUGE_NAMES, Decision, from_json, to_json

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def test_a_clear_gain_is_promoted() -> None:
    """A gain that noise cannot explain is promoted, with the numbers that prove it."""
    ours, theirs = two_models(1, gain=0.05)
    decision = judged(ours, theirs)
    metric = decision.metrics["rougeL"]
    assert decision.verdict == "PROMOTE"
    assert 0 < metric.low < metric.gain < metric.high
    assert metric.champion is not None
    assert metric.gain == pytest.approx(metric.challenger - metric.champion, abs=1e-9)
    assert f"gained +{metric.gain:.3f}" in decision.reasons[0]
    assert f"lower bound {metric.low:.3f}" in decision.reasons[0]


def test_a_worse_model_is_rejected() -> None:
    """A loss is a REJECT that says how much was lost."""
    ours, theirs = two_models(2, gain=-0.05)
    decision = judged(ours, theirs)
    assert decision.verdict == "REJECT"
    assert f"{decision.metrics['rougeL'].gain:+.3f}" in decision.reasons[0]


def test_a_tie_keeps_the_champion() -> None:
    """A tie keeps the champion, and so does one that only float noise tells from a tie."""
    theirs = table([0.3, 0.1] * 50)
    assert judged(theirs, theirs, digests=("a", "b")).verdict == "REJECT"
    ours = table([0.2, 0.2] * 50)  # 0.2 - 0.3 and 0.2 - 0.1 do not cancel in floats
    decision = judged(ours, theirs)
    assert decision.metrics["rougeL"].gain == 0
    assert decision.verdict == "REJECT"


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_the_champion_against_itself_is_never_promoted(scores: list[float]) -> None:
    """The champion against itself is never promoted, under its own digest or another."""
    rows = table(scores)
    same = judged(rows, rows, digests=("m", "m"))
    assert (same.verdict, same.reasons) == ("REJECT", ("same model",))
    assert judged(rows, rows, digests=("m", "copy")).verdict == "REJECT"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=80))
def test_two_models_never_both_beat_each_other(scores: list[tuple[float, float]]) -> None:
    """No two tables promote each other, and what is not a mean gain is never promoted."""
    ours, theirs = table([a for a, _ in scores]), table([b for _, b in scores])
    there, back = judged(ours, theirs), judged(theirs, ours)
    assert not there.verdict == back.verdict == "PROMOTE"
    for decision in (there, back):
        if decision.metrics["rougeL"].gain <= 0:
            assert decision.verdict == "REJECT"


def test_a_gain_that_noise_could_explain_is_inconclusive() -> None:
    """An unproven gain is INCONCLUSIVE: what the set could have shown, and rows that would show it."""
    ours, theirs = two_models(3, rows=60, gain=0.012, noise=0.1)
    decision = judged(ours, theirs)
    assert decision.verdict == "INCONCLUSIVE"
    assert decision.smallest_gain is not None
    assert decision.rows_needed is not None
    assert decision.smallest_gain > decision.metrics["rougeL"].gain > 0
    assert decision.rows_needed > 60
    reasons = " ".join(decision.reasons)
    assert f"{decision.smallest_gain:+.3f}" in reasons
    assert f"about {decision.rows_needed:,} rows" in reasons


def test_a_gain_up_to_min_delta_is_no_gain() -> None:
    """A gain must exceed min_delta: its mean or REJECT, its lower bound or INCONCLUSIVE."""
    ours, theirs = two_models(4, gain=0.03)
    gain = judged(ours, theirs).metrics["rougeL"].gain
    over = QUICK.model_copy(update={"min_delta": gain + 0.01})
    assert judged(ours, theirs, over).verdict == "REJECT"
    near = QUICK.model_copy(update={"min_delta": gain - 0.002})
    assert judged(ours, theirs, near).verdict == "INCONCLUSIVE"


def test_many_looks_are_corrected_and_said() -> None:
    """The k-th look is held to alpha/k^2: a gain good enough for the first is not for the fiftieth."""
    ours, theirs = two_models(8, gain=0.016)
    first, later = judged(ours, theirs, looks=1), judged(ours, theirs, looks=50)
    assert (first.verdict, later.verdict) == ("PROMOTE", "INCONCLUSIVE")
    assert later.alpha == QUICK.alpha / 50**2
    assert later.metrics["rougeL"].low < first.metrics["rougeL"].low
    assert "challenger 50" in later.notes[0]
    counted = judged(ours, theirs, QUICK.model_copy(update={"looks": "count"}), looks=50)
    assert (counted.verdict, counted.alpha) == ("PROMOTE", QUICK.alpha)
    assert "probability 0.92" in counted.notes[0]


def test_a_worn_out_set_promotes_nothing() -> None:
    """After very many looks no bound can be computed, and the set is asked to be replaced."""
    ours, theirs = two_models(9, rows=40, gain=0.3, noise=0.01)
    decision = judged(ours, theirs, looks=100_000)
    assert decision.verdict == "INCONCLUSIVE"
    assert "take fresh evaluation data" in " ".join(decision.reasons)


def test_lead3_never_decides_but_is_noted() -> None:
    """A promoted model below lead-3 is promoted, and the decision says so."""
    ours, theirs = two_models(10, gain=0.05)
    lead3 = [replace(r, scores=dict.fromkeys(ROUGE_NAMES, 0.9)) for r in theirs]
    decision = judged(ours, theirs, lead3=lead3)
    assert decision.verdict == "PROMOTE"
    assert decision.metrics["rougeL"].lead3 == pytest.approx(0.9)
    assert "below 0.900 of lead-3" in decision.notes[0]
    assert judged(ours, theirs, lead3=theirs).notes == ()


def test_a_rambling_base_is_an_opponent_too() -> None:
    """Against an untuned base that never stops the gate still decides."""
    ours, base = two_models(11, gain=0.1)
    rambling = [replace(row, finished=False, output_tokens=128) for row in base]
    decision = judged(ours, rambling, kind="base")
    assert decision.verdict == "PROMOTE"
    assert decision.metrics["rougeL"].champion is None
    assert decision.metrics["rougeL"].base is not None


def test_row_order_does_not_matter() -> None:
    """The same rows in another order give the same decision, to the last bit."""
    ours, theirs = two_models(12, gain=0.01)
    assert judged(ours[::-1], theirs[50:] + theirs[:50]) == judged(ours, theirs)


# Later looks need many more resamples: seconds each.
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from((1, 2, 3, 10)), st.floats(-0.1, 0.1))
def test_a_decision_survives_json(seed: int, looks: int, gain: float) -> None:
    """A decision read back from JSON is equal, and deciding again gives the same."""
    ours, theirs = two_models(seed, rows=50, gain=gain)
    decision = judged(ours, theirs, looks=looks)
    assert from_json(Decision, to_json(decision)) == decision
    assert judged(ours, theirs, looks=looks) == decision


def test_headlines() -> None:
    """The verdict in a line, with the champion that stays."""
    ours, theirs = two_models(1, gain=0.05)
    won, lost = judged(ours, theirs), judged(theirs, ours)
    metric = won.metrics["rougeL"]
    numbers = f"rougeL {metric.gain:+.3f} [{metric.low:.3f}, {metric.high:.3f}]"
    assert (
        headline(in_the_open(won), "dialogsum", 3, "rougeL") == f"PROMOTED dialogsum v3: {numbers}"
    )
    assert headline(in_the_open(lost), "d", None, "rougeL").startswith("REJECTED d: rougeL -0.0")
    assert headline(in_the_open(lost), "d", None, "rougeL").endswith("], champion v2 stays")
    first = judged(theirs, ours, kind="base")
    assert headline(in_the_open(first), "d", None, "rougeL").endswith(", no champion yet")
    same = judged(ours, ours, digests=("m", "m"))
    assert (
        headline(in_the_open(same), "d", None, "rougeL")
        == "REJECTED d: same model, champion v2 stays"
    )


def test_another_primary_metric() -> None:
    """The recipe's metric decides, the other three are its guardrails."""
    ours, theirs = two_models(14, gain=0.05)
    decision = judged(ours, theirs, Gate(metric="rouge1", bootstrap_samples=1000))
    assert "rouge1" in decision.reasons[0]
    assert [g.name for g in decision.guardrails][:3] == ["rouge2", "rougeL", "rougeLsum"]
