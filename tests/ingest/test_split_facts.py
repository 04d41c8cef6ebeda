"""Remarks on references that are odd together, though each by itself may be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ingest_files import Ingest, document, jsonl

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Prompt

ASKS_SUMMARY = Prompt()
OWN = Prompt(template="{document}\nWhat is it about? ")


def written(path: Path, references: list[str], start: int = 0) -> str:
    return jsonl(
        path,
        [{"document": document(n), "summary": text} for n, text in enumerate(references, start)],
    )


@pytest.fixture
def remarks(tmp_path: Path, ingest: Ingest) -> Any:
    """The remarks on evaluation rows with these references."""
    train = written(tmp_path / "train.jsonl", [f"Summary {n} of it." for n in range(20)], start=500)

    def of(references: list[str], prompt: Prompt = OWN) -> list[str]:
        judged = written(tmp_path / "judged.jsonl", references)
        ingest(prompt, train=train, evaluation=judged)
        found: list[str] = ingest.report()["remarks"]
        return [line for line in found if line.startswith("evaluation rows")]

    return of


def test_references_that_are_their_documents(remarks: Any) -> None:
    """They are counted and used, however their white space runs; a text that only begins so is none."""
    copies = [document(0).replace(" ", "  "), document(1) + "\n", document(2) + " And more."]
    [line] = remarks([*copies, *(f"Summary {n}." for n in range(9))])
    assert "2 of 12 references equal their documents (16.7%)" in line
    assert "data.fields.summary" in line


def test_references_that_stand_in_their_documents(remarks: Any) -> None:
    """A document saved with its summary: counted, when a third of the rows are so."""
    inside = [document(n).split(": ", 1)[-1][:60] for n in range(6)]
    [line] = remarks([*inside, *(f"Summary {n}, of my own words." for n in range(6))])
    assert "6 of 12 references stand in their documents word for word" in line


@pytest.mark.parametrize(
    ("text", "of_twelve", "remark"),
    [
        ("A caf\ufffd.", 1, "1 of 12 rows hold U+FFFD"),
        ("A caf\u00c3\u00a9.", 1, "1 of 12 rows hold characters of UTF-8 that was read as Latin-1"),
        ("It\u00e2\u20ac\u2122s late.", 1, "read as Latin-1"),
        ("<p>Late.</p>", 2, "2 of 12 rows hold HTML"),
        ("Ann &amp; Bob.", 2, "2 of 12 rows hold HTML"),
        (r"Ann.\nBob.", 2, r"2 of 12 rows hold the two characters \n"),
    ],
)
def test_what_a_wrong_reading_leaves(text: str, of_twelve: int, remark: str, remarks: Any) -> None:
    """Lost characters are named from the first row on, HTML and escapes from a tenth of the rows."""
    others = [f"Summary {n} of it, \u00e9t\u00e9 \u00e0 3 < 4." for n in range(12 - of_twelve)]
    [line] = remarks([*(f"{text} {n}" for n in range(of_twelve)), *others])
    assert remark in line


def test_one_text_as_many_references(remarks: Any) -> None:
    """A text that is a third of the references is named with its count; a fifth is not."""
    [line] = remarks(["I do not know."] * 8 + [f"It is {n} of them." for n in range(12)])
    assert "8 of the 20 references are the same text, 'I do not know.'" in line
    assert remarks(["I do not know."] * 4 + [f"It is {n} of them." for n in range(16)]) == []


@pytest.mark.parametrize(
    "wrap", [lambda text: text, lambda text: f" {text}\n"], ids=["same", "spaced"]
)
def test_the_same_reference_everywhere_is_refused(remarks: Any, wrap: Any) -> None:
    """Nothing can be judged by it; of fewer than ten rows, and in training rows, it is a remark."""
    with pytest.raises(
        DataError, match=r"all 12 references are the same text, 'To be done.'.*judged"
    ):
        remarks([wrap("To be done.") if n % 2 else "To be done." for n in range(12)])
    assert remarks(["To be done."] * 9) == []


def test_the_same_reference_in_training(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A remark: the evaluation rows show what it is worth."""
    ingest(train=written(tmp_path / "train.jsonl", ["To be done."] * 15), evaluation=evaluation)
    [line] = [line for line in ingest.report()["remarks"] if line.startswith("training rows")]
    assert "15 of the 15 references are the same text" in line


@pytest.mark.parametrize(
    "texts",
    [
        ["yes", "no", "maybe so"],
        ["Paris.", "1912", "blue"],
        ["\u662f", "\u4e0d\u662f"],
        ["\u0434\u0430", "\u043d\u0435\u0442"],
    ],
    ids=["classes", "facts", "chinese", "russian"],
)
def test_answers_of_a_word_under_a_prompt_that_asks_for_a_summary(
    remarks: Any, texts: list[str]
) -> None:
    """A remark under the default template; a recipe with its own template knows what it asks."""
    references = [texts[n % len(texts)] for n in range(12)]
    lines = remarks(references, ASKS_SUMMARY)
    [line] = [line for line in lines if "one or two words" in line]
    assert "12 of 12 references" in line
    assert "write what is asked in prompt.template" in line
    assert not any("one or two words" in line for line in remarks(references))


def test_references_longer_than_their_documents(remarks: Any) -> None:
    """A remark under the default template: columns may be swapped."""
    long = [f"{document(n + 50)} And {document(n + 90)}" for n in range(12)]
    [line] = remarks(long, ASKS_SUMMARY)
    assert "12 of 12 references are longer than their documents" in line
    assert remarks(long) == []


def test_usual_references(remarks: Any) -> None:
    """No remark on summaries that differ and are shorter than their documents."""
    usual = [f"Number {n} of them." for n in range(12)]
    assert remarks(usual, ASKS_SUMMARY) == []
    usual[0] = "Short."
    assert remarks(usual, ASKS_SUMMARY) == []
