"""Sealed feedback: what of a decision is shown, how a set is divided, and what a learner gets out of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from gate.gate_tables import record, table
from numpy.typing import NDArray
from scipy.stats import t as student

from flows.outcome import Outcome
from tasks.contracts.formatting import headline
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Decision, OpenPart, Prediction, ShownDecision, to_json
from tasks.gate.level import level
from tasks.gate.look_key import judged_by
from tasks.gate.parts import OPEN, Setting, Split, decide_by_parts, part_of_each
from tasks.gate.shown import BROKEN, NO_GAIN, PASSED, WORSE, before_promotion, shown

GATE = Gate(bootstrap_samples=1000)
WORDS = [f"word{i}" for i in range(400)]


def written(rows: int, gains: NDArray[np.float64]) -> tuple[list[Prediction], list[Prediction]]:
    """Two models' rows about different documents; the challenger's scores are higher by `gains`."""
    draw = np.random.default_rng(3)
    theirs = draw.uniform(0.3, 0.6, rows)
    documents = [" ".join(draw.choice(WORDS, 40)) for _ in range(rows)]
    tables = [table(theirs + gains), table(theirs)]
    ours, old = (
        [replace(r, document=d) for r, d in zip(t, documents, strict=True)] for t in tables
    )
    return ours, old


def decided(
    ours: list[Prediction], theirs: list[Prediction], *, looks: int = 1, split: Split = "hash"
) -> tuple[Decision, OpenPart | None, ShownDecision]:
    """The decision, the open part, and what is shown."""
    gate = GATE if split != "none" else GATE.model_copy(update={"feedback": "open"})
    tables = {"challenger": ours, "opponent": theirs, "base": theirs, "lead3": None}
    scores = {"challenger": record(ours, "new"), "opponent": record(theirs, "old")}
    setting = Setting(gate, split, "champion", 2, looks)
    decision, opened = decide_by_parts(tables, scores, setting)
    return decision, opened, shown(decision, opened, gate, len(ours))


def numbers_of(decision: Decision) -> Iterator[str]:
    """Every measured number of a decision, as it would be printed at any precision from two digits on."""
    values = [decision.smallest_gain, *(one.value for one in decision.guardrails)]
    for found in decision.metrics.values():
        values += [found.base, found.challenger, found.gain, found.low, found.high, found.champion]
    for value in values:
        if value is not None and abs(value) > 0.001 and abs(value) != 1:
            yield f"{abs(value):.4f}"


@pytest.mark.parametrize(
    ("gain", "spread", "verdict", "reason"),
    [
        (-0.1, 0.02, "REJECT", WORSE),
        (-0.001, 0.1, "INCONCLUSIVE", NO_GAIN),
        (0.001, 0.1, "INCONCLUSIVE", NO_GAIN),
    ],
)
def test_a_refusal_tells_its_kind_and_no_deciding_number(
    gain: float, spread: float, verdict: str, reason: str
) -> None:
    """In the record, the terminal's text, the JSON and the headline; not even the sign of a small gain."""
    spreads = np.random.default_rng(1).standard_normal(120) * spread
    ours, theirs = written(120, gain + spreads - spreads.mean())
    decision, opened, told = decided(ours, theirs)
    assert (told.verdict, told.reasons) == (verdict, (reason,))
    assert opened is not None
    assert opened.rows + told.rows == 120
    outcome = Outcome("demo", told, None, headline(told, "demo", None, "rougeL"), (), "r", "f")
    texts = [to_json(told), outcome.as_text(), outcome.as_json(), outcome.headline]
    allowed = {*numbers_of(replace(decision, metrics=opened.metrics, guardrails=()))}
    hidden = set(numbers_of(decision)) - allowed
    assert len(hidden) >= 4
    for text in texts:
        assert not [number for number in hidden if number in text]
    shown_mean = f"{opened.metrics['rougeL'].challenger:.4f}"
    assert shown_mean in outcome.as_text()
    assert (
        f"open part, {opened.rows} of 120 rows; the verdict is of the other {told.rows}" in texts[1]
    )


def test_a_broken_guardrail_is_not_named() -> None:
    """The open part names its own, with numbers; of the deciding rows only that one is broken."""
    ours, theirs = written(120, np.full(120, 0.05) + np.tile([-0.01, 0.01], 60))
    cut_off = [replace(row, finished=False) for row in ours]
    decision, opened, told = decided(cut_off, theirs)
    assert "cut off" in decision.reasons[0]
    assert told.reasons == (BROKEN,)
    assert opened is not None
    assert "unfinished_rise" in {one.name for one in opened.guardrails if not one.held}


def test_a_promotion_tells_everything() -> None:
    """Deciding numbers, reasons and guardrails, beside the open part's."""
    ours, theirs = written(120, np.full(120, 0.05) + np.tile([-0.01, 0.01], 60))
    decision, opened, told = decided(ours, theirs)
    assert told.verdict == "PROMOTE"
    assert (told.metrics, told.reasons) == (decision.metrics, decision.reasons)
    assert told.guardrails == decision.guardrails
    text = Outcome("demo", told, 3, headline(told, "demo", 3, "rougeL"), (), "r", "f").as_text()
    assert f"deciding part, {told.rows} of 120 rows" in text
    assert opened is not None
    assert f"open part, {opened.rows} of 120 rows" in text


def test_until_a_promotion_took_place_it_tells_no_number() -> None:
    """A run killed between gate and registry leaves a tag and a file that say that it passed, and no more."""
    ours, theirs = written(120, np.full(120, 0.05) + np.tile([-0.01, 0.01], 60))
    decision, opened, told = decided(ours, theirs)
    assert opened is not None
    public = before_promotion(told, GATE)
    assert (public.verdict, public.reasons) == ("PROMOTE", (PASSED,))
    allowed = {*numbers_of(replace(decision, metrics=opened.metrics, guardrails=()))}
    hidden = set(numbers_of(decision)) - allowed
    assert len(hidden) >= 4
    assert not [number for number in hidden if number in to_json(public)]
    assert before_promotion(replace(told, feedback="open"), GATE).metrics == decision.metrics


def test_a_gate_with_other_settings_is_another_look() -> None:
    """Verdicts at many values of min_delta tell the bound; defaults count as the metric alone, as before."""
    assert judged_by(Gate()) == judged_by(Gate(bootstrap_samples=10_000)) == "rougeL"
    others = [Gate(min_delta=0.01), Gate(min_delta=0.02), Gate(alpha=0.01), Gate(open_share=0.9)]
    assert len({judged_by(gate) for gate in (Gate(), *others)}) == 5
    assert judged_by(Gate(min_delta=0.01)) == judged_by(Gate(min_delta=0.01))
    # Approval is asked after the verdict: it tells nothing of the deciding rows.
    assert judged_by(Gate(approval="required", approval_timeout_days=1)) == "rougeL"


def test_open_feedback_shows_and_judges_all_rows() -> None:
    """As before there were parts; and what that costs is told."""
    ours, theirs = written(60, np.full(60, -0.1) + np.tile([-0.01, 0.01], 30))
    decision, opened, told = decided(ours, theirs, split="none")
    assert (decision.rows, opened) == (60, None)
    assert (told.metrics, told.reasons) == (decision.metrics, decision.reasons)
    text = Outcome("d", told, None, headline(told, "d", None, "rougeL"), (), "r", "f").as_text()
    assert "feedback is open" in text


def test_a_row_keeps_its_part_and_near_copies_share_one() -> None:
    """Whatever its order, id, case or spacing, and the rows beside it; about the share are open."""
    rows, _ = written(400, np.zeros(400))
    part = dict(zip((r.document for r in rows), part_of_each(rows, "hash", 0.3), strict=True))
    assert 90 < list(part.values()).count("open") < 150
    again = [replace(r, id=f"x{i}", source=f"y{i}") for i, r in enumerate(reversed(rows[:200]))]
    for row, name in zip(again, part_of_each(again, "hash", 0.3), strict=True):
        assert name == part[row.document]
    shouted = [replace(r, document=f" {str(r.document).upper()} ") for r in rows[:50]]
    assert part_of_each(shouted, "hash", 0.3) == [part[r.document] for r in rows[:50]]
    copies = [
        replace(r, id=f"c{i}", source=f"c{i}", document=f"{r.document} and more")
        for i, r in enumerate(rows[:100])
    ]
    both = part_of_each([*rows[:100], *copies], "hash", 0.3)
    assert both[:100] == both[100:]


def test_of_many_near_copies_the_same_share_is_open() -> None:
    """The smallest of ten hashes is small nine times of ten: a cluster's hash is taken again."""
    rows, _ = written(200, np.zeros(200))
    copies = [
        replace(r, id=f"{r.id}.{n}", source=f"{r.id}.{n}", document=f"{r.document} {n}")
        for r in rows
        for n in range(5)
    ]
    share = part_of_each(copies, "hash", 0.3).count("open") / len(copies)
    assert 0.2 < share < 0.4


def test_named_parts_are_kept_and_near_copies_across_them_left_out() -> None:
    """An open row that is like a deciding one would tell of it."""
    rows, _ = written(10, np.zeros(10))
    named = [replace(r, id=f"{OPEN if i < 4 else 'deciding/'}{r.id}") for i, r in enumerate(rows)]
    assert part_of_each(named, "named", 0.3) == ["open"] * 4 + ["deciding"] * 6
    named[0] = replace(named[0], document=f"{named[9].document} indeed")
    assert part_of_each(named, "named", 0.3) == ["neither"] + ["open"] * 3 + ["deciding"] * 6


def look(tried: NDArray[np.float64], k: int) -> str:
    """The verdict on these gains as the real gate gives it, asked only where it could promote."""
    mean = tried.mean()
    error = tried.std(ddof=1) / np.sqrt(len(tried))
    needed = float(student.isf(level(GATE, k), len(tried) - 1))
    if mean <= 0.97 * needed * error:
        return "REJECT" if mean < -needed * error else "INCONCLUSIVE"
    ours, theirs = written(len(tried), np.clip(tried, -0.3, 0.4))
    return decided_alone(ours, theirs, k)


def decided_alone(ours: list[Prediction], theirs: list[Prediction], k: int) -> str:
    """A decision by rows that all decide, under the rules of sealed feedback."""
    named = [[replace(r, id=f"deciding/{r.id}") for r in rows] for rows in (ours, theirs)]
    return decided(*named, looks=k, split="named")[0].verdict


@pytest.mark.parametrize("learns", ["from the open part", "from the verdict", "by joining"])
def test_a_learner_gains_nothing_from_what_is_shown(learns: str) -> None:
    """Of 60 series of 48 looks at 140 deciding and 60 open rows, without any gain, no more promote than a
    chance of 8.2% explains (8, in 19 of 20 tries): keeping what rose in the open part, keeping what was
    no REJECT, or joining 40 of those. Where every verdict told a gain's sign, joining promoted 15 of 60.
    """
    promoted, families, looks = 0, 60, 48
    for family in range(families):
        draw = np.random.default_rng(1000 + family)
        kept, joined, best = np.zeros(200), np.zeros(200), 0.0
        for k in range(1, looks + 1):
            step = draw.standard_normal(200) * 0.03
            tried = kept + step
            if learns == "by joining":
                tried = step if k <= 40 else joined + step * 0.2
            verdict = look(tried[60:], k)
            if verdict == "PROMOTE":
                promoted += 1
                break
            if verdict != "REJECT" and learns == "from the verdict":
                kept = tried
            if verdict != "REJECT" and k <= 40:
                joined = joined + step
            if tried[:60].mean() > best and learns == "from the open part":
                kept, best = tried, tried[:60].mean()
    assert promoted <= 8
