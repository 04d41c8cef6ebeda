"""The conditions besides the primary metric, one by one.

Over 250 lines: they share their tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gate.gate_tables import QUICK, judged, table, two_models

from tasks.contracts.records import ROUGE_NAMES, Decision, Guardrail, Prediction


def _tables(
    rouge2: float, noise: float = 0.01, **odd: Any
) -> tuple[list[Prediction], list[Prediction]]:
    """A challenger far better in all but ROUGE-2, which changes by `rouge2`."""
    draw = np.random.default_rng(0)
    theirs = draw.uniform(0.3, 0.5, (200, 4))
    ours = theirs + 0.1 + 0.01 * draw.standard_normal((200, 4))
    swing = noise * draw.standard_normal(200)
    column = ROUGE_NAMES.index("rouge2")
    ours[:, column] = theirs[:, column] + rouge2 + swing - swing.mean()
    return table(ours, **odd), table(theirs)


def _with_references(
    rows: Sequence[Prediction], references: Sequence[tuple[str, ...]]
) -> list[Prediction]:
    return [replace(row, references=own) for row, own in zip(rows, references, strict=True)]


def _guardrail(decision: Decision, name: str) -> Guardrail:
    return next(g for g in decision.guardrails if g.name == name)


def test_a_loss_in_another_rouge_is_rejected() -> None:
    """ROUGE-L may not be bought with ROUGE-2."""
    decision = judged(*_tables(-0.01))
    assert decision.verdict == "REJECT"
    assert "rouge2 changed by -0.010" in decision.reasons[0]
    assert not _guardrail(decision, "rouge2").held
    assert _guardrail(decision, "rouge1").held


def test_no_proof_of_no_loss_is_asked_for() -> None:
    """Where ROUGE-2 may be worse but was not measured so, the gain in ROUGE-L is promoted."""
    decision = judged(*_tables(0.001, noise=0.1))
    assert decision.verdict == "PROMOTE"
    assert decision.metrics["rouge2"].low < -0.005
    assert _guardrail(decision, "rouge2").held


def test_a_measured_loss_that_noise_explains_is_inconclusive() -> None:
    """A drop of ROUGE-2 over the margin prevents promotion; as noise could explain it, nothing is lost."""
    decision = judged(*_tables(-0.008, noise=0.1))
    assert decision.verdict == "INCONCLUSIVE"
    assert (
        "rouge2 changed by -0.008, a loss over the margin of 0.005, though noise"
        in decision.reasons[0]
    )
    assert not _guardrail(decision, "rouge2").held


def test_a_small_measured_loss_is_within_the_margin() -> None:
    """A loss under the margin holds, and with a margin of zero it does not."""
    assert judged(*_tables(-0.002)).verdict == "PROMOTE"
    strict = QUICK.model_copy(update={"guardrail_margin": 0.0})
    assert judged(*_tables(-0.002), strict).verdict == "REJECT"
    assert _guardrail(judged(*_tables(0.1), strict), "rouge2").bound == ">= 0"


@pytest.mark.parametrize(
    ("cut", "verdict"), [(10, "PROMOTE"), (11, "INCONCLUSIVE"), (30, "REJECT")]
)
def test_more_outputs_cut_off_are_rejected(cut: int, verdict: str) -> None:
    """The share of outputs cut off at the limit may rise by 0.05 and no more."""
    decision = judged(*_tables(0.1, unfinished=cut))
    assert decision.verdict == verdict
    assert _guardrail(decision, "unfinished_rise").value == cut / 200
    if verdict != "PROMOTE":
        assert f"{cut} of 200 outputs were cut off" in decision.reasons[0]


@pytest.mark.parametrize(
    ("empty", "verdict"), [(2, "PROMOTE"), (3, "INCONCLUSIVE"), (10, "REJECT")]
)
def test_empty_outputs_are_rejected(empty: int, verdict: str) -> None:
    """One output in a hundred may be empty."""
    decision = judged(*_tables(0.1, empty=empty))
    assert decision.verdict == verdict
    if verdict != "PROMOTE":
        assert f"{empty} of 200 outputs hold no letter" in decision.reasons[0]


@pytest.mark.parametrize(
    ("count", "held"), [(2, False), (3, True), (12, True), (13, False), (60, False)]
)
def test_the_length_ratio_is_bounded(count: int, held: bool) -> None:
    """Outputs from half to twice the references' length, whatever the opponent's are."""
    references = [("one two three four five six",)] * 200
    ours, theirs = _tables(
        0.1, texts=[" ".join(f"w{i}x{j}" for j in range(count)) for i in range(200)]
    )
    decision = judged(*(_with_references(rows, references) for rows in (ours, theirs)))
    assert _guardrail(decision, "length_ratio").held is held
    assert _guardrail(decision, "length_ratio").value == count / 6
    assert decision.verdict == ("PROMOTE" if held else "REJECT")


@pytest.mark.parametrize(
    "text", ["", " \n", ".", "\u200b\u200b", "\u2060\ufeff", "…", "-- !!", "\u3000", "\U0001f44d"]
)
def test_an_output_without_letters_and_digits_is_empty(text: str) -> None:
    """Whatever a reader cannot read counts: 40% of such outputs are refused."""
    ours, theirs = _tables(0.1, texts=[text if i < 80 else f"summary {i}" for i in range(200)])
    decision = judged(ours, theirs)
    assert decision.verdict == "REJECT"
    assert _guardrail(decision, "empty_share").value == 0.4


@pytest.mark.parametrize("text", ["好", "да", "ठीक", "5", "ก", "\u03bd\u03b1\u03b9"])
def test_a_short_output_in_any_script_is_not_empty(text: str) -> None:
    """One letter or digit is something to read."""
    ours, theirs = _tables(0.1, texts=[text] * 200)
    assert _guardrail(judged(ours, theirs), "empty_share").held


PHRASES = {
    "the same": lambda i: "The two of them talk about what they will do at the weekend.",
    "the same with a name": lambda i: (
        f"Person{i} and a friend talk about what they will do at the weekend."
    ),
    "one of five": lambda i: "The {} of them talk about what they do next.".format(
        "abcde"[i % 5] * 3
    ),
    "the same in Chinese": lambda i: f"第{i}位他们在谈论周末要做的事情和计划。",
    "one word": lambda i: "Yes",
}


@pytest.mark.parametrize("phrase", PHRASES.values(), ids=PHRASES)
def test_one_phrase_for_all_documents_is_refused(phrase: Callable[[int], str]) -> None:
    """Outputs that fit every document do not promote, however weak the opponent is."""
    ours, theirs = _tables(0.1, texts=[phrase(i) for i in range(200)])
    decision = judged(ours, theirs)
    assert _guardrail(decision, "same_share").value > 0.9
    assert decision.verdict == "REJECT"


def test_outputs_may_be_alike_where_references_are() -> None:
    """Data whose references all say the same have no other right answer."""
    phrase = "No findings of note were made in this document at all."
    rows = _tables(0.1, texts=[phrase] * 200)
    references = [(phrase,)] * 200
    decision = judged(*(_with_references(table_rows, references) for table_rows in rows))
    assert _guardrail(decision, "same_share").value == 0
    assert decision.verdict == "PROMOTE"


def test_outputs_that_repeat_themselves_are_refused() -> None:
    """A loop inside a finished output is a broken model; references that loop are data."""
    loop = "they went home and then " * 6
    ours, theirs = _tables(
        0.1, texts=[f"{loop} {i}" if i < 60 else f"output {i}" for i in range(200)]
    )
    decision = judged(ours, theirs)
    assert _guardrail(decision, "repeating_rise").value == 0.3
    assert decision.verdict == "REJECT"
    assert "60 of 200 outputs repeat themselves" in " ".join(decision.reasons)
    looping = [(loop,)] * 200
    decision = judged(*(_with_references(rows, looping) for rows in (ours, theirs)))
    assert _guardrail(decision, "repeating_rise").value == 0


def test_outputs_that_copy_their_document_are_refused_and_a_copying_opponent_is_named() -> None:
    """Quotations may not win over summaries; a champion that quotes may go on, and is named."""
    ours, theirs = _tables(0.1)
    documents = [" ".join(f"word{i}x{j}" for j in range(40)) for i in range(200)]

    def about(rows: list[Prediction], copied: int) -> list[Prediction]:
        return [
            replace(
                row,
                document=document,
                text=" ".join(document.split()[3:23]) if i < copied else row.text,
            )
            for i, (row, document) in enumerate(zip(rows, documents, strict=True))
        ]

    decision = judged(about(ours, 50), about(theirs, 0))
    assert _guardrail(decision, "copied_rise").value == 0.25
    assert "50 of 200 outputs copy their document" in " ".join(decision.reasons)
    decision = judged(about(ours, 0), about(theirs, 150))
    assert decision.verdict == "PROMOTE"
    assert any("150 of the champion's 200 outputs copy" in note for note in decision.notes)


def test_outputs_that_invent_numbers_or_names_are_refused() -> None:
    """A rise in invented tokens vetoes; what a reference says too is no invention."""
    texts = [f"output {i} for {'Walter' if i < 60 else 'them'}" for i in range(200)]
    ours, theirs = _tables(0.1, texts=texts)
    decision = judged(ours, theirs)
    assert _guardrail(decision, "invented_rise").value == 0.3
    assert decision.verdict == "REJECT"
    assert "60 of 200 outputs hold a number or name" in " ".join(decision.reasons)
    told = [(f"reference {i} about Walter",) for i in range(200)]
    decision = judged(*(_with_references(rows, told) for rows in (ours, theirs)))
    assert _guardrail(decision, "invented_rise").value == 0


def test_all_broken_guardrails_are_named_at_once() -> None:
    """A refusal gives every reason, not the first."""
    texts = ["long " * 9] * 200
    decision = judged(*_tables(-0.05, unfinished=40, empty=40, texts=texts))
    assert len(decision.reasons) == 6


def test_most_outputs_cut_off_are_noted_at_promotion() -> None:
    """Better than a base that never stops, but itself mostly cut off: promoted with a note."""
    ours, base = two_models(1, gain=0.1)
    cut = [Prediction(**{**vars(row), "finished": False}) for row in base]
    mostly = [Prediction(**{**vars(row), "finished": i > 150}) for i, row in enumerate(ours)]
    decision = judged(mostly, cut, kind="base")
    assert decision.verdict == "PROMOTE"
    assert "151 of the promoted model's 200 outputs were cut off" in decision.notes[0]


@pytest.mark.parametrize(
    ("lost", "won", "verdict"),
    [(4, 0, "PROMOTE"), (5, 0, "INCONCLUSIVE"), (30, 0, "REJECT"), (30, 27, "PROMOTE")],
)
def test_documents_that_lose_much_are_counted(lost: int, won: int, verdict: str) -> None:
    """More than 2% of 200 outputs lose over 0.3, beyond those that gain as much; the mean hides them."""
    draw = np.random.default_rng(1)
    theirs = draw.uniform(0.45, 0.55, 200)
    ours = theirs + 0.1 + 0.01 * draw.standard_normal(200)
    ours[:lost] = theirs[:lost] - 0.31
    ours[lost : lost + won] = theirs[lost : lost + won] + 0.35
    decision = judged(table(ours), table(theirs))
    assert decision.verdict == verdict
    assert _guardrail(decision, "lost_share").value == (lost - won) / 200
    if verdict == "REJECT":
        assert "30 of 200 outputs lose more than 0.3 in rougeL and 0 gain as much" in " ".join(
            decision.reasons
        )


def test_one_document_that_loses_much_is_no_share() -> None:
    """Of 20 documents one is 5%, and proves nothing."""
    theirs = np.full(20, 0.5)
    ours = theirs + np.linspace(0.1, 0.2, 20)
    ours[0] = 0.1
    assert _guardrail(judged(table(ours), table(theirs)), "lost_share").held
