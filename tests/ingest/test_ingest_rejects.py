from __future__ import annotations

import json
from pathlib import Path

import pytest
from ingest_files import LENIENT, Ingest, jsonl, rows, settings

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data, Fields, Prompt
from tasks.ingest.prepare import problems

GOOD = {"document": "a b c d e f", "summary": "s"}
BAD = {
    "no column": ({"document": "a"}, 'has no "summary"; add it or set data.fields.summary'),
    "null": ({"document": None, "summary": "s"}, '"document" is null'),
    "number": ({"document": 5, "summary": "s"}, '"document" is a number'),
    "object": ({"document": {"a": 1}, "summary": "s"}, '"document" is an object'),
    "blank document": ({"document": " \n\t ", "summary": "s"}, '"document" is blank'),
    "blank summary": ({"document": "a", "summary": "  "}, '"summary" is blank'),
    "no references": ({"document": "a", "summary": []}, "is an empty list"),
    "blank reference": ({"document": "a", "summary": ["x", ""]}, "(reference 2) is blank"),
    "number reference": ({"document": "a", "summary": [1]}, "(reference 1) is a number"),
    "half a surrogate": ({"document": "a \ud83d b", "summary": "s"}, "is not valid Unicode"),
}


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """Good rows with every kind of bad one from line 6 on."""
    bad = [json.dumps(value) for value, _ in BAD.values()]
    return jsonl(tmp_path / "train.jsonl", [*rows(5), *bad])


def test_each_bad_row_is_named(mixed: str, ingest: Ingest, evaluation: str) -> None:
    """Every bad row is set aside with its file, line, problem and text; the others are used."""
    made = ingest(train=mixed, evaluation=evaluation, max_rejected_share=LENIENT)
    assert (made.train_rows, made.rejected) == (5, len(BAD))
    for number, (reject, (value, problem)) in enumerate(
        zip(ingest.rejects(), BAD.values(), strict=True), start=6
    ):
        assert (reject["file"], reject["line"]) == (mixed, number)
        assert problem in reject["problem"]
        assert set(reject) == {"file", "line", "problem", "raw"}
        if "surrogate" not in reject["raw"] and "\\ud" not in reject["raw"]:
            assert json.loads(reject["raw"]) == value


def test_over_the_share(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """Over max_rejected_share the flow stops: each reason once, with its first line and a count."""
    bad = [{"document": "x", "summary": ""}] * 30 + [{"document": 1, "summary": "s"}] * 2
    train = jsonl(tmp_path / "train.jsonl", [*rows(100), *bad])
    with pytest.raises(DataError) as caught:
        ingest(train=train, evaluation=evaluation, max_rejected_share=0.2)
    lines = str(caught.value).splitlines()
    assert "32 of 132 rows" in lines[0]
    assert "data.max_rejected_share allows 20.0%" in lines[0]
    assert lines[1].startswith(f'{train}:101 "summary" is blank')
    assert lines[1].endswith("(and 29 more like it)")
    assert lines[2].startswith(f'{train}:131 "document" is a number')
    assert lines[2].endswith("(and 1 more like it)")
    assert str(ingest.folder / "rejects.jsonl") in lines[3]
    assert len(ingest.rejects()) == 32
    assert sorted(ingest.bytes()) == ["rejects.jsonl"]


def test_share_exactly_allowed(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A share equal to the limit passes."""
    train = jsonl(tmp_path / "train.jsonl", [*rows(99), {"document": "x", "summary": ""}])
    assert ingest(train=train, evaluation=evaluation).rejected == 1
    assert ingest.report()["inputs"]["data.train"]["rejected_share"] == 0.01


def test_both_files_in_one_error(tmp_path: Path, ingest: Ingest) -> None:
    """Bad rows of training and evaluation data come in one error."""
    train = jsonl(tmp_path / "train.jsonl", [*rows(3), "{"])
    dev = jsonl(tmp_path / "dev.jsonl", [*rows(3, start=10), '{"document": "x", "summary": " "}'])
    with pytest.raises(DataError) as caught:
        ingest(train=train, evaluation=dev)
    assert f"{train}:4 is not valid JSON" in str(caught.value)
    assert f'{dev}:4 "summary" is blank' in str(caught.value)


def test_half_written_last_line(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A half-written last line is rejected with its line number."""
    path = Path(jsonl(tmp_path / "train.jsonl", rows(4)))
    path.write_bytes(path.read_bytes()[:-15])
    ingest(train=str(path), evaluation=evaluation, max_rejected_share=LENIENT)
    assert [row.id for row in ingest.rows("train")] == ["train:1", "train:2", "train:3"]
    (reject,) = ingest.rejects()
    assert reject["line"] == 4
    assert reject["problem"].startswith("is half-written, not valid JSON")
    assert reject["raw"].startswith('{"document":')


def test_not_utf8(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """Bytes that are no UTF-8 cost their own row only, in JSONL as in CSV."""
    values = [json.dumps(row).encode() for row in rows(3)]
    values[1] = values[1].replace(b"Summary", b"R\xe9sum\xe9")
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(values) + b"\n")
    table = b"document,summary\na,1\nb,r\xe9sum\xe9\nc,3\n"
    (tmp_path / "train.csv").write_bytes(table)
    for name, line in (("train.jsonl", 2), ("train.csv", 3)):
        ingest(train=str(tmp_path / name), evaluation=evaluation, max_rejected_share=LENIENT)
        (reject,) = ingest.rejects()
        assert reject["line"] == line
        assert "save the file as UTF-8" in reject["problem"]
        assert len(ingest.rows("train")) == 2


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', "17", "null", "[" * 100_000])
def test_no_object(line: str, tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A line that is not an object is rejected, however deeply it is nested."""
    train = jsonl(tmp_path / "train.jsonl", [*rows(2), line])
    ingest(train=train, evaluation=evaluation, max_rejected_share=LENIENT)
    (reject,) = ingest.rejects()
    assert reject["line"] == 3
    assert len(reject["raw"]) <= 500


def test_missing_files(tmp_path: Path, ingest: Ingest) -> None:
    """Missing files are all named at once, with where they were looked for and what is there."""
    jsonl(tmp_path / "training.jsonl", rows(3))
    with pytest.raises(DataError) as caught:
        ingest(train=str(tmp_path / "train.jsonl"), evaluation="nowhere/dev.jsonl")
    first, second = str(caught.value).splitlines()
    assert first.startswith("data.train: no file or folder")
    assert "training.jsonl" in first
    assert second.startswith("data.evaluation: no file or folder nowhere/dev.jsonl")
    assert str(Path.cwd()) in second


def test_empty_file(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """An empty file, one of white space, and a folder without data are refused."""
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n \n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"data\.train: .*empty\.jsonl is empty; put rows in it"):
        ingest(train=str(tmp_path / "empty.jsonl"), evaluation=evaluation)
    with pytest.raises(DataError, match="holds no rows"):
        ingest(train=str(tmp_path / "blank.jsonl"), evaluation=evaluation)
    with pytest.raises(DataError, match=r"holds none of \.jsonl"):
        ingest(train=str(tmp_path / "folder"), evaluation=evaluation)


def test_empty_part(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """An empty part among others, as parallel writers leave them, does no harm."""
    jsonl(tmp_path / "parts/a.jsonl", rows(3))
    (tmp_path / "parts/b.jsonl").touch()
    assert ingest(train=str(tmp_path / "parts"), evaluation=evaluation).train_rows == 3


def test_unknown_suffix(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A file of another form is refused, with the forms that are read."""
    (tmp_path / "train.txt").write_text("text")
    with pytest.raises(DataError, match=r"train\.txt is none of \.jsonl"):
        ingest(train=str(tmp_path / "train.txt"), evaluation=evaluation)


def test_all_rows_bad(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """No usable row stops the flow even where every share of rejects is allowed."""
    train = jsonl(tmp_path / "train.jsonl", [{"document": "x", "summary": ""}] * 3)
    with pytest.raises(DataError, match="holds no usable row"):
        ingest(train=train, evaluation=evaluation, max_rejected_share=LENIENT)


def test_nothing_readable(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A file in which no row can be read says why, before any column is looked for."""
    train = jsonl(tmp_path / "train.jsonl", ["document: a", "summary: b"])
    with pytest.raises(DataError, match=r"train\.jsonl:1 is not valid JSON"):
        ingest(train=train, evaluation=evaluation, fields=Fields(document="nope", summary="s"))


def test_too_long(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """With truncate: error a prompt over the limit is a bad row; one at the limit is not."""
    template = "Read: {document}\nSummary: "
    room = 100 - 1 - len(template.replace("{document}", ""))  # <s> is one token
    values = [
        {"document": "x" * room, "summary": "s"},
        {"document": "y" * (room + 1), "summary": "s"},
    ]
    train = jsonl(tmp_path / "train.jsonl", values)
    dev = jsonl(tmp_path / "short.jsonl", [{"document": "z", "summary": "s"}])
    prompt = Prompt(template=template, truncate="error")
    ingest(prompt, most=100, train=train, evaluation=dev, max_rejected_share=LENIENT)
    assert [row.id for row in ingest.rows("train")] == ["train:1"]
    (reject,) = ingest.rejects()
    assert reject["line"] == 2
    assert "makes a prompt of 101 tokens, over the 100 allowed" in reject["problem"]


def test_first_rows(tmp_path: Path, ingest: Ingest) -> None:
    """train_rows and evaluation_rows use the first good rows, and nothing after them is read."""
    values: list[object] = [*rows(50)]
    values[1] = "{"
    values[30] = "{"
    train = jsonl(tmp_path / "train.jsonl", values)
    dev = jsonl(tmp_path / "dev.jsonl", rows(50, start=100))
    made = ingest(
        train=train, evaluation=dev, train_rows=20, evaluation_rows=7, max_rejected_share=0.05
    )
    assert (made.train_rows, made.evaluation_rows, made.rejected) == (20, 7, 1)
    assert ingest.rows("train")[-1].id == "train:21"
    assert ingest.report()["inputs"]["data.train"]["rows_read"] == 21
    assert ingest.report()["inputs"]["data.evaluation"]["rows_read"] == 7


def test_check_finds_the_same(mixed: str, byte_tokenizer: Path, evaluation: str) -> None:
    """The check before a run reports what would stop it, with counts, and writes nothing."""
    data = Data(train=mixed, evaluation=evaluation)
    before = sorted(Path(mixed).parent.iterdir())
    found, counts = problems(data, Prompt(), settings(), byte_tokenizer)
    assert f"{len(BAD)} of {5 + len(BAD)} rows" in found[0]
    assert any(line.startswith(f"{mixed}:6 ") for line in found)
    assert counts["rejected"] == len(BAD)
    assert sorted(Path(mixed).parent.iterdir()) == before
    lenient = data.model_copy(update={"max_rejected_share": LENIENT})
    found, counts = problems(lenient, Prompt(), settings(), byte_tokenizer)
    assert (found, counts["train_rows"], counts["evaluation_rows"]) == ([], 5, 5)
    assert problems(lenient, Prompt()) == (found, counts)
    found, counts = problems(Data(train="nowhere.jsonl", evaluation="nor.csv"), Prompt())
    assert (len(found), counts) == (2, {})
