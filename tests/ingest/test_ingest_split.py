from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_files import Ingest, document, jsonl, rows

from tasks.contracts.errors import DataError
from tasks.ingest.row_types import source_of
from tasks.ingest.split_writer import in_evaluation


def test_stable_when_data_grow(tmp_path: Path, ingest: Ingest) -> None:
    """More rows never move a row from one side to the other, nor rename it."""
    few, many = rows(100), rows(300)
    train = jsonl(tmp_path / "t.jsonl", few)
    ingest(train=train, evaluation_share=0.3)
    before = {side: ingest.rows(side) for side in ("train", "evaluation")}
    jsonl(tmp_path / "t.jsonl", many)
    ingest(train=train, evaluation_share=0.3)
    for side, known in before.items():
        assert ingest.rows(side)[: len(known)] == known
    assert 60 <= len(ingest.rows("evaluation")) <= 120
    assert len(ingest.rows("train")) + len(ingest.rows("evaluation")) == 300


def test_one_document_one_side(tmp_path: Path, ingest: Ingest) -> None:
    """All rows of one document, however its white space runs, stand on one side."""
    values = [
        {"document": document(n).replace(" ", gap), "summary": f"{n} {len(gap)} {gap == chr(10)}"}
        for gap in (" ", "  ", "\n")
        for n in range(60)
    ]
    ingest(train=jsonl(tmp_path / "t.jsonl", values), evaluation_share=0.4)
    train, held_out = ingest.rows("train"), ingest.rows("evaluation")
    assert not {row.source for row in train} & {row.source for row in held_out}
    assert len(train) + len(held_out) == 180
    assert len({row.source for row in train + held_out}) == 60
    assert ingest.report()["overlap"]["exact_dropped"] == 0


@given(st.text(), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_shares_nest(text: str, one: float, other: float) -> None:
    """A document held out at one share is held out at every larger share."""
    small, large = sorted((one, other))
    assert in_evaluation(source_of(text), large) or not in_evaluation(source_of(text), small)


@given(st.lists(st.sampled_from("abc \n\t"), max_size=20))
def test_white_space_does_not_count(letters: list[str]) -> None:
    """Documents that differ in white space alone are one source."""
    text = "".join(letters)
    assert source_of(text) == source_of(f"  {' '.join(text.split())}\r\n")
    assert len(source_of(text)) == 16


def test_first_rows_of_a_split(tmp_path: Path, ingest: Ingest) -> None:
    """Row limits take the first rows of each side, and choose no other side for a row."""
    train = jsonl(tmp_path / "t.jsonl", rows(200))
    ingest(train=train, evaluation_share=0.3)
    sides = {side: ingest.rows(side) for side in ("train", "evaluation")}
    made = ingest(train=train, evaluation_share=0.3, train_rows=20, evaluation_rows=10)
    assert (made.train_rows, made.evaluation_rows) == (20, 10)
    assert ingest.rows("train") == sides["train"][:20]
    assert ingest.rows("evaluation") == sides["evaluation"][:10]
    assert ingest.report()["inputs"]["data.train"]["rows_read"] < 200
    made = ingest(train=train, evaluation_share=0.3, train_rows=20)
    assert (made.train_rows, made.evaluation_rows) == (20, len(sides["evaluation"]))


def test_empty_side(tmp_path: Path, ingest: Ingest) -> None:
    """A side that gets no row stops the flow, and says what to do."""
    one = jsonl(tmp_path / "t.jsonl", rows(1))
    with pytest.raises(
        DataError, match=r"none in evaluation \(data.evaluation_share is 0.01\); raise"
    ):
        ingest(train=one, evaluation_share=0.01)
    with pytest.raises(DataError, match=r"none in train \(data.evaluation_share is 0.99\); lower"):
        ingest(train=one, evaluation_share=0.99)


def test_duplicates(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """The same document and references are one row; another reference makes another row."""
    one = {"document": document(1), "summary": "A summary."}
    same = {"document": document(1).replace(" ", " \n"), "summary": " A  summary. "}
    other = {"document": document(1), "summary": "Another summary."}
    made = ingest(train=jsonl(tmp_path / "t.jsonl", [one, same, other, one]), evaluation=evaluation)
    found = ingest.rows("train")
    assert [row.references for row in found] == [("A summary.",), ("Another summary.",)]
    assert [row.id for row in found] == ["t:1", "t:3"]
    assert found[0].source == found[1].source
    assert made.train_rows == 2
    report = ingest.report()["train"]
    assert (report["rows"], report["documents"], report["duplicates_dropped"]) == (2, 1, 2)


def test_named_open_rows_stand_beside_those_that_decide(tmp_path: Path, ingest: Ingest) -> None:
    """Both in one file, told apart by their ids; each limited alone; neither is left in training."""
    values = rows(90)
    ingest(
        train=jsonl(tmp_path / "t.jsonl", values),
        evaluation=jsonl(tmp_path / "e.jsonl", values[:30]),
        open_evaluation=jsonl(tmp_path / "o.jsonl", values[25:60]),
        evaluation_rows=20,
    )
    judged = ingest.rows("evaluation")
    parts = [row.id.partition("/")[0] for row in judged]
    assert (parts.count("deciding"), parts.count("open")) == (20, 20)
    documents = {row.document for row in judged}
    assert len(documents) == 40
    assert not documents & {row.document for row in ingest.rows("train")}


def test_an_open_row_that_decides_too_is_dropped(tmp_path: Path, ingest: Ingest) -> None:
    """A row of both files decides, and is counted as a duplicate."""
    values = rows(60)
    ingest(
        train=jsonl(tmp_path / "t.jsonl", values[40:]),
        evaluation=jsonl(tmp_path / "e.jsonl", values[:20]),
        open_evaluation=jsonl(tmp_path / "o.jsonl", values[15:30]),
    )
    ids = [row.id for row in ingest.rows("evaluation")]
    assert [id_.partition("/")[0] for id_ in ids] == ["deciding"] * 20 + ["open"] * 10
    assert ingest.report()["evaluation"]["duplicates_dropped"] == 5
