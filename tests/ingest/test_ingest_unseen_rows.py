"""Rows that came later: how many a champion has not seen, and which it may be tested on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ingest_files import TEMPLATE, Ingest, document, jsonl, rows, settings

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data, Prompt
from tasks.contracts.records import DatasetRef, read_rows
from tasks.ingest.fresh import prepare_fresh
from tasks.ingest.unseen_rows import count_new


@pytest.fixture
def seen(ingest: Ingest, tmp_path: Path, evaluation: str) -> list[Path]:
    """What a champion saw: 20 training rows, and the evaluation file."""
    ingest(train=jsonl(tmp_path / "old.jsonl", rows(20)), evaluation=evaluation)
    return [ingest.folder / name for name in ("train.jsonl", "evaluation.jsonl")]


def count(seen: list[Path], train: str, evaluation: str | None, **more: object) -> int:
    return count_new(Data(train=train, evaluation=evaluation, **more), Prompt(), seen)  # type: ignore[arg-type]


def test_nothing_new_is_nothing(seen: list[Path], tmp_path: Path, evaluation: str) -> None:
    """The very rows of the champion, however wrapped and in whatever order."""
    wrapped = [{k: v.replace(" ", " \n ") for k, v in row.items()} for row in reversed(rows(20))]
    assert count(seen, str(tmp_path / "old.jsonl"), evaluation) == 0
    assert count(seen, jsonl(tmp_path / "wrapped.jsonl", wrapped), evaluation) == 0


def test_rows_that_came_are_counted_once(seen: list[Path], tmp_path: Path, evaluation: str) -> None:
    """Seven more rows, one of them twice, are seven; without a champion all 27 are new."""
    grown = jsonl(tmp_path / "new.jsonl", [*rows(27), rows(27)[-1]])
    assert count(seen, grown, evaluation) == 7
    assert count([], grown, evaluation) == 27


def test_another_summary_is_new(seen: list[Path], tmp_path: Path, evaluation: str) -> None:
    """Document and references make a row: a better summary of a known document is one to learn."""
    changed = [*rows(19), {"document": document(19), "summary": "A better one."}]
    assert count(seen, jsonl(tmp_path / "new.jsonl", changed), evaluation) == 1


def test_what_a_run_would_not_train_on_does_not_count(
    seen: list[Path], tmp_path: Path, evaluation: str
) -> None:
    """Evaluation documents, near copies of them, rejects, rows beyond train_rows: never new."""
    near = document(900).replace("w900x11", "other")
    copies = [
        {"document": document(901), "summary": "Another summary."},
        {"document": near, "summary": "A near copy."},
        {"document": "", "summary": "No document."},
    ]
    grown = jsonl(tmp_path / "new.jsonl", [*rows(20), *copies, *rows(10, start=50)])
    loose = {"max_rejected_share": 1.0, "near_duplicate_jaccard": 0.7}
    assert count(seen, grown, evaluation, **loose) == 10
    assert count(seen, grown, evaluation, train_rows=25, **loose) == 3


def test_a_share_held_out_is_not_new(ingest: Ingest, tmp_path: Path) -> None:
    """Without evaluation data, both sides of the champion's split are known rows."""
    source = jsonl(tmp_path / "all.jsonl", rows(60))
    ingest(train=source)
    seen = [ingest.folder / name for name in ("train.jsonl", "evaluation.jsonl")]
    assert count(seen, source, None) == 0
    assert 0 < count(seen, jsonl(tmp_path / "more.jsonl", rows(100)), None) < 40


def test_broken_data_are_an_error_with_all_problems(seen: list[Path], tmp_path: Path) -> None:
    """A check that cannot read the data does not say that there is nothing new."""
    with pytest.raises(DataError, match=r"(?s)no file or folder .*one.*no file or folder .*two"):
        count(seen, str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl"))


def fresh(
    tokenizer: Path, seen: list[Path], source: str, folder: Path, **more: object
) -> DatasetRef:
    data = Data(train="unused", **more)  # type: ignore[arg-type]
    prompt = Prompt(template=TEMPLATE)
    return prepare_fresh(data, source, prompt, settings(), tokenizer, seen, folder)


def test_fresh_rows_are_about_documents_not_seen(
    seen: list[Path], byte_tokenizer: Path, tmp_path: Path
) -> None:
    """Training and evaluation documents, and near copies, are dropped from the fresh rows."""
    near = {"document": document(900).replace("w900x11", "other"), "summary": "A near copy."}
    known = [rows(1)[0] | {"summary": "Another summary."}, rows(1, start=902)[0], near]
    source = jsonl(tmp_path / "fresh.jsonl", [*known, *rows(3, start=100), rows(1, start=100)[0]])
    out = tmp_path / "fresh"
    made = fresh(byte_tokenizer, seen, source, out, near_duplicate_jaccard=0.7)
    assert [row.document for row in read_rows(out / "evaluation.jsonl")] == [
        document(n) for n in (100, 101, 102)
    ]
    assert (made.evaluation_rows, made.train_rows) == (3, 0)
    report = json.loads((out / "report.json").read_text())
    assert report["overlap"] == {"exact_dropped": 2, "near_dropped": 1}
    assert report["duplicates_dropped"] == 1
    before = (out / "evaluation.jsonl").read_bytes()
    assert fresh(byte_tokenizer, seen, source, out, near_duplicate_jaccard=0.7) == made
    assert (out / "evaluation.jsonl").read_bytes() == before


def test_fresh_rows_that_are_all_known_are_an_error(
    seen: list[Path], byte_tokenizer: Path, tmp_path: Path
) -> None:
    """So are rows that cannot be used, and a source that is not there; evaluation.fresh is named."""
    old = str(tmp_path / "old.jsonl")
    with pytest.raises(DataError, match=r"evaluation.fresh: no row of .*old.jsonl is new"):
        fresh(byte_tokenizer, seen, old, tmp_path / "fresh")
    bad = jsonl(tmp_path / "bad.jsonl", [*rows(5, start=100), {"document": "x", "summary": ""}])
    with pytest.raises(DataError, match=r"evaluation.fresh: 1 of 6 rows"):
        fresh(byte_tokenizer, seen, bad, tmp_path / "fresh")
    with pytest.raises(DataError, match=r"evaluation.fresh: no file or folder"):
        fresh(byte_tokenizer, seen, str(tmp_path / "none.jsonl"), tmp_path / "fresh")
