from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from gate.gate_tables import in_the_open, judged, table, two_models
from report.report_data import by_loss, report_data

from tasks.report.data import ReportData
from tasks.report.examples import examples, losses, wins
from tasks.report.page import forest, render_html
from tasks.report.plots import plots

EVIL = "<script>alert('x')</script> & \"quoted\" <img src=http://evil.example/x.png>"


class _Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def rendered(data: ReportData) -> str:
    return render_html(data, plots(data))


def test_the_page_holds_the_numbers() -> None:
    """Verdict, every metric's means, gain and bounds, guardrails, cost, data and digests."""
    data = report_data()
    shown = " ".join(_Page(rendered(data)).text.split())
    for name, found in data.decision.metrics.items():
        assert name in shown
        for value in (found.champion, found.challenger):
            assert f"{value:.4f}" in shown
        assert f"{found.gain:+.4f} [{found.low:+.4f}, {found.high:+.4f}]" in shown
    assert data.headline in shown
    for text in (
        *data.decision.reasons,
        "champion v2",
        "outputs without a letter",
        "1.27",
        "1.42",
        "abc123",
    ):
        assert text in shown
    for text in ("1,500", "p50 207 · p95 435 · max 744", "no <summary>", "t.jsonl"):
        assert text in shown
    assert data.decision.evaluation_digest in shown


def test_the_page_says_what_did_not_fit() -> None:
    """How many, of how many, their share, tokens on average and at most; a dash where not known."""
    shown = " ".join(_Page(rendered(report_data())).text.split())
    for text in (
        "What did not fit of them all share on average at most",
        "evaluation documents, challenger cut 12 60 20.0% 310.4 tokens 1,204 tokens",
        "training documents cut 0 1,500 0.0%",
        "training completions cut 3 1,500 0.2% - -",
    ):
        assert text in shown
    assert "What did not fit" not in rendered(report_data(cuts=()))


def test_a_loss_is_shown_as_it_changed() -> None:
    """Its own sign beside its own numbers, and which way is better; wins are the largest falls."""
    data = by_loss()
    found = data.decision.metrics["loss"]
    shown = " ".join(_Page(rendered(data)).text.split())
    assert found.gain > 0
    assert found.champion is not None
    for text in (
        "loss and ROUGE F1, mean",
        "challenger change [low, high]",
        "loss, nats a token (lower is better) (decides) "
        f"{found.base:.4f} - {found.champion:.4f} {found.challenger:.4f} -{found.gain:.4f} "
        f"[-{found.high:.4f}, -{found.low:.4f}]",
        "to its right is better, where a loss fell",
        "rouge1: gain measured",
    ):
        assert text in shown
    ordered = examples(data.challenger, data.opponent, "loss")
    best = wins(ordered)[0]
    assert best.gain == pytest.approx(0.1)
    assert best.change == pytest.approx(-0.1)
    old, new = (row.scores["loss"] for row in (best.opponent, best.challenger))
    assert new < old
    assert f"{best.change:+.4f} loss {old:.4f} → {new:.4f}" in shown


def test_losses_are_drawn_on_a_scale_of_their_own() -> None:
    """Nats are not ROUGE points: a forest of both on one scale would show the ROUGE as dots."""
    found = forest(by_loss().decision.metrics)
    assert found["loss"]["zero"] < found["loss"]["low"] < found["loss"]["gain"]
    rouge = [found[name] for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")]
    assert max(place["high"] for place in rouge) - min(place["low"] for place in rouge) > 50
    assert len({place["zero"] for place in rouge}) == 1


def test_the_page_loads_nothing_from_anywhere() -> None:
    """No script, no external image, style or font: it can be mailed and opened offline."""
    text = rendered(report_data())
    page = _Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    loads = [value for _, name, value in page.attributes if name in {"src", "srcset", "data"}]
    assert len(loads) == 3
    assert all(value.startswith("data:image/png;base64,iVBOR") for value in loads)
    assert "url(" not in text
    assert "@import" not in text
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == ["http://localhost:5000/#/runs/1"]  # and no javascript: link


def test_untrusted_text_is_escaped() -> None:
    """A document, an output, an id or a reject that holds HTML is shown, not obeyed."""
    ours, theirs = two_models(1, rows=30, gain=0.08)

    def spoil(rows: list) -> list:  # type: ignore[type-arg]
        return [
            replace(r, id=f"{r.id}{EVIL}", document=EVIL, references=(EVIL,), text=EVIL)
            for r in rows
        ]

    data = report_data(
        spoil(ours), spoil(theirs), data_report={EVIL: {"examples": [EVIL, {EVIL: EVIL}]}}
    )
    page = _Page(rendered(data))
    assert "script" not in page.tags
    assert page.tags.count("img") == 3
    assert page.text.count("<script>alert('x')</script>") >= 10 * 5


def test_wins_and_losses_are_the_largest() -> None:
    """Five largest gains, largest first; five largest losses, worst first; ties are neither."""
    theirs = table([0.5] * 20)
    ours = table([0.5 + (i - 10) * 0.02 for i in range(20)])
    ordered = examples(ours[::-1], theirs, "rougeL")
    assert [one.challenger.id for one in wins(ordered)] == [f"row{i:05}" for i in range(19, 14, -1)]
    assert [one.challenger.id for one in losses(ordered)] == [f"row{i:05}" for i in range(5)]
    assert wins(ordered)[0].gain == pytest.approx(0.18)
    few = examples(table([0.5, 0.6, 0.2]), table([0.5, 0.5, 0.5]), "rouge1")
    assert [one.challenger.id for one in wins(few)] == ["row00001"]
    assert [one.challenger.id for one in losses(few)] == ["row00002"]


def test_examples_show_both_texts() -> None:
    """Each win has its document, reference, opponent's and challenger's text."""
    data = report_data()
    text = rendered(data)
    best = wins(examples(data.challenger, data.opponent, "rougeL"))[0]
    card = next(
        c for c in re.findall(r"<article>.*?</article>", text, re.S) if best.challenger.id in c
    )
    for part in (best.challenger.document, *best.challenger.references, best.opponent.text):
        assert part in card
    assert f"{best.gain:+.4f}" in card


def test_a_page_with_little_to_show() -> None:
    """No training, no data report, no gain at all, one row: still a page, and it says so."""
    rows = table([0.5])
    decision = in_the_open(judged(rows, rows, kind="base", digests=("m", "m")))
    data = report_data(rows, rows, training_curve=(), data_report={}, cost={}, decision=decision)
    shown = " ".join(_Page(rendered(replace(data, version=None))).text.split())
    for text in ("same model", "No row gained.", "No row lost.", "did not train", "untuned base"):
        assert text in shown
    assert shown.count("Not recorded.") == 2


def test_rendering_is_repeatable() -> None:
    """The same data give the same page, pictures included."""
    assert rendered(report_data()) == rendered(report_data())


def test_invented_numbers_and_names_are_marked() -> None:
    """In the examples, where neither the document nor a reference holds them."""
    ours, theirs = two_models(1, rows=60, gain=0.08)
    ours = [replace(row, text=f"{row.text} for Walter & 4,321 more") for row in ours]
    page = rendered(report_data(ours, theirs))
    assert ">Walter</mark>" in page
    assert ">4,321</mark>" in page
