"""Blind pairs: nothing on the page tells the two models apart, and the key tells all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gate.gate_tables import table, two_models
from report.report_data import report_data

from tasks.contracts.records import Approval
from tasks.report.blind_pairs import choose, compare, render_pairs
from tasks.report.markdown import render_markdown
from tasks.report.page import render_html


def written(count: int, who: str) -> list:  # type: ignore[type-arg]
    return table([0.5] * count, texts=[f"{who} {i}" for i in range(count)])


def test_sides_are_drawn_and_the_key_knows_them() -> None:
    """Both sides occur; the same seed draws the same, another seed other rows or sides."""
    blind = choose(written(40, "new"), written(40, "old"), seed=1)
    assert (len(blind.pairs), len(blind.key), set(blind.key)) == (20, 20, {"A", "B"})
    assert blind == choose(written(40, "new"), written(40, "old"), seed=1)
    assert blind != choose(written(40, "new"), written(40, "old"), seed=2)
    page = render_pairs(blind, "demo", "champion", 1000)
    for part, side in zip(page.split("## Pair ")[1:], blind.key, strict=True):
        first, second = part.index("new "), part.index("old ")
        assert (first < second) == (side == "A")
    assert "challenger)" not in page
    assert "champion)" not in page
    named = render_pairs(blind, "demo", "champion", 1000, "The answer: yes.")
    assert named.count("(challenger)") == named.count("(champion)") == 20
    assert "The answer: yes." in named
    typed = render_pairs(blind, "demo", "champion", 1000, "approved by <img src=x>")
    assert "<img" not in typed


def test_rows_written_alike_are_left_out_and_counted() -> None:
    """There is nothing to compare; white space around a text is no difference."""
    ours, theirs = written(30, "new"), written(30, "old")
    ours[:25] = [replace(row, text=f" {row.text}\n") for row in theirs[:25]]
    blind = choose(ours, theirs, seed=0)
    assert (len(blind.pairs), blind.alike, blind.rows) == (5, 25, 30)
    assert "25 rows where both wrote the same" in render_pairs(blind, "demo", "champion", 1000)


def test_without_rows_that_may_be_shown_the_page_says_so() -> None:
    """A small set may have none in the open part."""
    page = render_pairs(choose([], [], seed=0), "demo", "champion", 1000)
    assert "There are no pairs: no evaluation row may be shown before a promotion" in page


def test_texts_cannot_end_their_blocks() -> None:
    """A model's output is untrusted: it names no side by Markdown of its own."""
    evil = "x\n```\n# A (challenger)"
    ours = [replace(row, text=evil) for row in written(1, "new")]
    page = render_pairs(choose(ours, written(1, "old"), seed=0), "demo", "champion", 1000)
    assert f"````text\n{evil}\n````" in page


def test_preferences_are_counted_by_the_key() -> None:
    """The challenger's, the other model's, and neither's."""
    assert compare("ABBA", "AAB=") == (2, 1, 1)
    assert compare("", "") == (0, 0, 0)
    with pytest.raises(ValueError, match="argument"):
        compare("AB", "A")


def test_the_report_names_no_single_row_while_an_answer_is_awaited() -> None:
    """A pair may be of one of its rows; afterwards they are shown."""
    made = report_data()
    waiting = replace(made, decision=replace(made.decision, approval=Approval("waits", "2026")))
    ours, theirs = two_models(1, rows=60, gain=0.08)
    assert ours[0].text != "" != theirs[0].text
    for render in (render_markdown, render_html):
        assert "Biggest wins" in render(made, [])
        page = render(waiting, [])
        assert "Biggest wins" not in page
        assert "in the blind pairs alone until somebody has answered" in page
