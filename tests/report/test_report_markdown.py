from __future__ import annotations

from dataclasses import replace

import pytest
from gate.gate_tables import two_models
from report.report_data import by_loss, report_data

from tasks.contracts.records import SliceResult
from tasks.report import markdown
from tasks.report.data import ReportData
from tasks.report.markdown import render_markdown
from tasks.report.plots import plots


def rendered(data: ReportData) -> str:
    return render_markdown(data, plots(data))


def test_the_artifact_holds_the_numbers() -> None:
    """Verdict, scores with bounds, guardrails, examples, cost and where it came from."""
    data = report_data(kind="base")
    text = rendered(data)
    assert text.startswith(f"# {data.headline}\n\n- rougeL gained")
    found = data.decision.metrics["rougeL"]
    assert found.champion is None
    row = f"| **rougeL** | {found.base:.4f} | - | - | {found.challenger:.4f} | {found.gain:+.4f} | "
    assert f"{row}[{found.low:+.4f}, {found.high:+.4f}] |" in text
    for part in ("Gain over the untuned base", "## Biggest wins", "| peak memory gib | 1.42 |"):
        assert part in text
    assert "| train prompt tokens p95 | 435 |" in text
    assert text.count("![") == 3


def test_the_artifact_shows_a_loss_as_it_changed_and_what_did_not_fit() -> None:
    """The same as on the page."""
    data = by_loss()
    found, text = data.decision.metrics["loss"], rendered(data)
    assert (
        f"| **loss, nats a token (lower is better)** | {found.base:.4f} | - | {found.champion:.4f} | "
        f"{found.challenger:.4f} | -{found.gain:.4f} | [-{found.high:.4f}, -{found.low:.4f}] |"
    ) in text
    assert "| loss and ROUGE F1 | untuned base |" in text
    assert "| challenger | change | [low, high] |" in text
    assert "Change over champion v2 on 60 rows; **loss** decides." in text
    assert "### -0.1000 loss (" in text
    assert (
        "| 12 of 60 evaluation documents, challenger (20.0%), by 310 tokens on average and 1,204 at "
        "most | cut |"
    ) in text


def test_large_pictures_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact lives in a database: a picture over the limit is left out."""
    monkeypatch.setattr(markdown, "MAX_IMAGE_CHARACTERS", 100)
    assert "![" not in rendered(report_data())


def test_a_text_cannot_end_its_block() -> None:
    """Backticks, HTML and pipes in documents, ids and outputs stay text."""
    ours, theirs = two_models(1, rows=30, gain=0.08)
    evil = "a ```` b\n```\n<script>x</script>\n# heading"
    spoiled = [[replace(r, document=evil, id=f"{r.id}![x](y)`") for r in t] for t in (ours, theirs)]
    text = rendered(report_data(*spoiled, cost={"a|b": "<i>\nx"}))
    assert f"`````text\n{evil}\n`````" in text
    assert ", row `row000" in text
    assert "![x](y)`\n" in text
    assert "| a\\|b | &lt;i> x |" in text


def test_slices_are_code_and_a_page_has_the_worst() -> None:
    """A label of the data is no link, picture or tag; of a hundred the least gains stand."""
    data = report_data()
    evil = SliceResult("topic", "![x](y) <b>|`", 30, 30, -0.5, -0.6, -0.4)
    many = [SliceResult("topic", f"t{n}", 30, 30, 0.01 * n, 0.0, 0.1) for n in range(100)]
    shown = replace(data, decision=replace(data.decision, slices=(*many, evil)))
    text = rendered(shown)
    assert "| `topic: ![x](y) <b>\\|` | 30 | -0.5000 | [-0.6000, -0.4000] |" in text
    assert "`topic: t38`" in text
    assert "`topic: t39`" not in text
    assert "61 more slices are in the decision." in text


def test_long_documents_are_cut() -> None:
    """A long document is cut short in the artifact; the page has all of it."""
    ours, theirs = two_models(1, rows=30, gain=0.08)
    long = [[replace(r, document="word " * 5000) for r in t] for t in (ours, theirs)]
    assert len(rendered(report_data(*long))) < 200_000


def test_a_long_line_is_wrapped_where_prefects_page_would_cut_it() -> None:
    """A summary is one line of text; its words all stand within the first 80 columns."""
    ours, theirs = two_models(1, rows=30, gain=0.08)
    line = " ".join(f"word{n}" for n in range(60))
    text = rendered(report_data(*[[replace(r, text=line) for r in t] for t in (ours, theirs)]))
    shown = text.split("Challenger:\n\n```text\n")[1].split("\n```")[0]
    assert shown.split() == line.split()
    assert 70 < max(map(len, shown.splitlines())) <= 80
