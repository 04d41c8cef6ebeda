"""The real sets beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ingest_files import Ingest

from tasks.contracts.recipe import Data, Fields, Prompt
from tasks.contracts.records import read_rows
from tasks.ingest.prepare import prepare
from tasks.serving.summarizer import SummarizerSettings


@pytest.mark.full
def test_dialogsum(shared: Path, tmp_path: Path) -> None:
    """All of DialogSum passes under the defaults; its overlap between train and dev is found.

    71 of the near-copies have a similarity of 0.8 or more. The other 54 share at least half of one side's
    5-grams: the same dialogues with other names, numbers, or turns added. Read by eye: 20 of them whole, and
    the first lines of the rest.
    """
    data = Data(
        train=str(shared / "data/dialogsum/train.jsonl"),
        evaluation=str(shared / "data/dialogsum/dev.jsonl"),
        fields=Fields(document="dialogue", summary="summary", id="fname"),
    )
    prompt = Prompt()
    limits = SummarizerSettings(prompt.template, 896, "tail", 128, 16)
    made = prepare(data, prompt, limits, shared / "models/dialog-7m", tmp_path)
    assert made.rejected == 0
    assert made.evaluation_rows == 500
    rows = read_rows(tmp_path / "train.jsonl")
    assert len(rows) == made.train_rows == 12_296
    assert rows[0].id == "train_0"
    assert len({row.source for row in rows}) == 11_711
    overlap = json.loads((tmp_path / "report.json").read_text())["overlap"]
    assert overlap["exact_dropped"] == 32
    assert overlap["near_dropped_by_kind"] == {"similar": 124, "part": 1}
    dev = read_rows(tmp_path / "evaluation.jsonl")
    assert not {row.source for row in rows} & {row.source for row in dev}


def test_dialogsum_first_rows(shared: Path, ingest: Ingest) -> None:
    """The first 1,500 training and 200 dev rows, as the main recipe takes them."""
    ingest(
        train=str(shared / "data/dialogsum/train.jsonl"),
        evaluation=str(shared / "data/dialogsum/dev.jsonl"),
        fields=Fields(document="dialogue", summary="summary", id="fname"),
        train_rows=1500,
        evaluation_rows=200,
    )
    report = ingest.report()
    assert report["evaluation"]["rows"] == 200
    overlap = report["overlap"]["exact_dropped"] + report["overlap"]["near_dropped"]
    assert report["train"]["rows"] + report["train"]["duplicates_dropped"] + overlap == 1500
    assert report["train"]["rows"] > 1470


def test_guanaco_forms_agree(shared: Path, ingest: Ingest) -> None:
    """guanaco as JSONL and as Parquet gives the same rows; one of its turns asks nothing."""
    found = []
    for form in ("jsonl", "parquet"):
        ingest(
            Prompt(template="{document}"),
            most=50_000,
            train=str(shared / f"data/guanaco/train.{form}"),
        )
        sides = [ingest.rows(side) for side in ("train", "evaluation")]
        (reject,) = ingest.rejects()
        assert (reject["line"], "blank question" in reject["problem"]) == (435, True)
        found.append([(r.id, r.document, r.references) for side in sides for r in side])
    assert found[0] == found[1]
    assert len(found[0]) == 999
    assert all(document.startswith("[INST]") for _, document, _ in found[0])
    assert all(document.endswith("[/INST]") for _, document, _ in found[0])
    assert sum("</s><s>[INST]" in document for _, document, _ in found[0]) == 352


def test_billsum_crlf(shared: Path, ingest: Ingest) -> None:
    """BillSum's CRLF lines are read, its quotes kept, its text column found."""
    made = ingest(
        most=50_000, train=str(shared / "data/billsum/us_train_100.jsonl"), evaluation_share=0.2
    )
    assert (made.train_rows + made.evaluation_rows, made.rejected) == (100, 0)
    rows = [*ingest.rows("train"), *ingest.rows("evaluation")]
    assert not any("\r" in row.document for row in rows)
    assert any("``" in row.document for row in rows)
    assert all(row.id.split("_")[0].isdigit() for row in rows)


def test_medquad_repeats(shared: Path, ingest: Ingest) -> None:
    """MedQuAD's repeated questions stay on one side, as several rows of one source."""
    made = ingest(train=str(shared / "data/medquad/medquad_3k.jsonl"))
    train, held_out = ingest.rows("train"), ingest.rows("evaluation")
    sources = [{row.source for row in side} for side in (train, held_out)]
    assert not sources[0] & sources[1]
    assert len(sources[0]) < len(train)
    assert len({row.id for row in train}) == len(train)
    report = ingest.report()
    dropped = report["overlap"]["near_dropped"] + report["train"]["duplicates_dropped"]
    assert made.train_rows + made.evaluation_rows + dropped == 3000
