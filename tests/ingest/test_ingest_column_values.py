"""Columns whose names promise nothing are judged by their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ingest_files import Ingest, jsonl, refused, rows

from tasks.contracts.recipe import Fields

LETTERS = {name: f"answer {name}" for name in "ABCD"}
BY_VALUE: dict[str, tuple[dict[str, Any], str]] = {
    "a text in another language": ({"Frage": "Was sagte Ann über die Lampe {n}?"}, "Frage"),
    "a text without blanks": ({"问题": "第{n}盏灯是谁在什么时候打开的呢"}, "问题"),
    "a text by any name": ({"opx": "who turned lamp {n} on, and why"}, "opx"),
    "a truth value": ({"usable": True}, "usable"),
    "a truth value as text": ({"usable": "False"}, "usable"),
    "a name of a choice": (LETTERS, "A, B, C, D"),
    "a mask": ({"loss_mask": 0}, "loss_mask"),
    "a short question": ({"pregunta": "\u00bfQui\u00e9n, {n}?"}, "pregunta"),
    "a question in Chinese": ({"\u95ee": "{n}\u662f\u8c01\uff1f"}, "\u95ee"),
    "an object with an instruction": ({"meta": {"instruction": "Be short.", "n": 1}}, "meta"),
    "a task": ({"task": "tldr"}, "task"),
}


@pytest.mark.parametrize(("extra", "ignored"), BY_VALUE.values(), ids=BY_VALUE)
def test_a_column_that_may_matter_by_its_values(
    extra: dict[str, Any], ignored: str, tmp_path: Path, ingest: Ingest, evaluation: str
) -> None:
    """Texts that differ and truth values are not left out silently, whatever the column is called."""
    values = [
        row | {k: v.format(n=n) if isinstance(v, str) else v for k, v in extra.items()}
        for n, row in enumerate(rows(9))
    ]
    train = jsonl(tmp_path / "t.jsonl", values)
    assert f"data.fields.ignore: [{ignored}]" in refused(ingest, train=train, evaluation=evaluation)
    ingest(train=train, evaluation=evaluation, fields=Fields(ignore=tuple(ignored.split(", "))))


@pytest.mark.parametrize("name", ["split", "Subset", "teil"])
def test_one_file_with_several_splits(
    name: str, tmp_path: Path, ingest: Ingest, evaluation: str
) -> None:
    """Rows for testing are not trained on silently; of one split alone nothing is asked."""
    several = [row | {name: ("train", "Test")[n % 2]} for n, row in enumerate(rows(9))]
    message = refused(ingest, train=jsonl(tmp_path / "t.jsonl", several), evaluation=evaluation)
    assert "which rows are for training" in message
    assert f"data.fields.ignore: [{name}]" in message
    one = [row | {name: "train"} for row in rows(9)]
    ingest(train=jsonl(tmp_path / "one.jsonl", one), evaluation=evaluation)


@pytest.mark.parametrize(
    "extra",
    [
        {"title": "A long title of the talk {n}"},
        {"note": "the same for every row of it"},
        {"tools": "[]"},
        {"has_lamp": True},
        {"meta": {"a": 1}},
        {"speaker_name": "Ann"},
    ],
    ids=str,
)
def test_a_column_that_names_something_is_named_as_unused(
    extra: dict[str, Any], tmp_path: Path, ingest: Ingest, evaluation: str
) -> None:
    """Titles, texts that are all alike, empty lists as text: the report says that nothing uses them."""
    values = [
        row | {k: v.format(n=n) if isinstance(v, str) else v for k, v in extra.items()}
        for n, row in enumerate(rows(9))
    ]
    ingest(train=jsonl(tmp_path / "t.jsonl", values), evaluation=evaluation)
    used = ingest.report()["inputs"]["data.train"]["files"][0]["fields"]
    assert used["unused"] == [*extra]
