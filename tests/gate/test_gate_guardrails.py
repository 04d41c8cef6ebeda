from __future__ import annotations

import numpy as np
import pytest
from gate.gate_tables import QUICK, judged, table, two_models

from tasks.contracts.records import ROUGE_NAMES, Decision, Guardrail, Prediction


def _tables(
    rouge2: float, noise: float = 0.01, **odd: int
) -> tuple[list[Prediction], list[Prediction]]:
    """A challenger far better in all but ROUGE-2, which changes by `rouge2`."""
    draw = np.random.default_rng(0)
    theirs = draw.uniform(0.3, 0.5, (200, 4))
    ours = theirs + 0.1 + 0.01 * draw.standard_normal((200, 4))
    swing = noise * draw.standard_normal(200)
    column = ROUGE_NAMES.index("rouge2")
    ours[:, column] = theirs[:, column] + rouge2 + swing - swing.mean()
    return table(ours, **odd), table(theirs)  # type: ignore[arg-type]


def _guardrail(decision: Decision, name: str) -> Guardrail:
    return next(g for g in decision.guardrails if g.name == name)


def test_a_loss_in_another_rouge_is_rejected() -> None:
    """ROUGE-L may not be bought with ROUGE-2."""
    decision = judged(*_tables(-0.01))
    assert decision.verdict == "REJECT"
    assert "rouge2 changed by -0.010" in decision.reasons[0]
    assert not _guardrail(decision, "rouge2").held
    assert _guardrail(decision, "rouge1").held


def test_another_rouge_that_noise_leaves_open_is_inconclusive() -> None:
    """Where ROUGE-2 may be worse but was not measured so, noise is the reason."""
    decision = judged(*_tables(0.001, noise=0.1))
    assert decision.verdict == "INCONCLUSIVE"
    assert "rouge2 could be worse by more than 0.005" in decision.reasons[0]
    assert not _guardrail(decision, "rouge2").held


def test_a_small_shown_loss_is_within_the_margin() -> None:
    """A loss shown to be under the margin holds, and with a margin of zero it does not."""
    assert judged(*_tables(-0.001)).verdict == "PROMOTE"
    strict = QUICK.model_copy(update={"guardrail_margin": 0.0})
    assert judged(*_tables(-0.001), strict).verdict == "REJECT"
    assert _guardrail(judged(*_tables(0.1), strict), "rouge2").bound == ">= 0"


@pytest.mark.parametrize(("cut", "verdict"), [(10, "PROMOTE"), (11, "REJECT")])
def test_more_outputs_cut_off_are_rejected(cut: int, verdict: str) -> None:
    """The share of outputs cut off at the limit may rise by 0.05 and no more."""
    decision = judged(*_tables(0.1, unfinished=cut))
    assert decision.verdict == verdict
    assert _guardrail(decision, "unfinished_rise").value == cut / 200
    if verdict == "REJECT":
        assert "11 of 200 outputs were cut off" in decision.reasons[0]


@pytest.mark.parametrize(("empty", "verdict"), [(2, "PROMOTE"), (3, "REJECT")])
def test_empty_outputs_are_rejected(empty: int, verdict: str) -> None:
    """One output in a hundred may be empty."""
    decision = judged(*_tables(0.1, empty=empty))
    assert decision.verdict == verdict
    if verdict == "REJECT":
        assert "3 of 200 outputs are empty" in decision.reasons[0]


@pytest.mark.parametrize(("ratio", "held"), [(0.49, False), (0.5, True), (2.0, True), (2.1, False)])
def test_the_length_ratio_is_bounded(ratio: float, held: bool) -> None:
    """Outputs from half to twice the references' length, whatever the opponent's are."""
    decision = judged(*_tables(0.1), length=ratio)
    assert _guardrail(decision, "length_ratio").held is held
    assert decision.verdict == ("PROMOTE" if held else "REJECT")


def test_all_broken_guardrails_are_named_at_once() -> None:
    """A refusal gives every reason, not the first."""
    decision = judged(*_tables(-0.05, unfinished=40, empty=40), length=3.0)
    assert len(decision.reasons) == 4


def test_most_outputs_cut_off_are_noted_at_promotion() -> None:
    """Better than a base that never stops, but itself mostly cut off: promoted with a note."""
    ours, base = two_models(1, gain=0.1)
    cut = [Prediction(**{**vars(row), "finished": False}) for row in base]
    mostly = [Prediction(**{**vars(row), "finished": i > 150}) for i, row in enumerate(ours)]
    decision = judged(mostly, cut, kind="base")
    assert decision.verdict == "PROMOTE"
    assert "151 of the promoted model's 200 outputs were cut off" in decision.notes[0]
