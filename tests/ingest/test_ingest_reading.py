"""Files into rows: JSONL, JSON, CSV and Parquet, and what cannot be read."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_files import LENIENT, Ingest, document, jsonl, rows, source_file

from tasks.contracts.errors import DataError
from tasks.ingest import json_array
from tasks.ingest.csv_rows import read_csv
from tasks.ingest.json_array import read_array


def as_csv(path: Path, values: list[dict[str, str]], line_end: str = "\n") -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        # All quoted: the writer leaves a lone carriage return bare, which readers take for a line end.
        writer = csv.DictWriter(
            file, list(values[0]), lineterminator=line_end, quoting=csv.QUOTE_ALL
        )
        writer.writeheader()
        writer.writerows(values)
    return str(path)


def as_parquet(path: Path, values: list[dict[str, object]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path, row_group_size=3)
    return str(path)


@pytest.mark.parametrize("form", ["jsonl", "json", "lines.json", "csv", "parquet"])
def test_forms_agree(form: str, tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """Every file form gives the same documents and references."""
    values = rows(10)
    values[3]["document"] = 'He wrote: "a, b",\nand left — naïvely.'
    path = tmp_path / f"train.{form}"
    if form == "csv":
        as_csv(path, values)
    elif form == "parquet":
        as_parquet(path, list(values))
    elif form == "json":
        path.write_text(json.dumps(values, indent=1))
    else:
        jsonl(path, values)
    ingest(train=str(path), evaluation=evaluation)
    found = [(row.document, row.references) for row in ingest.rows("train")]
    assert found == [(v["document"], (v["summary"],)) for v in values]


def test_folder(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A folder's files are read in name order, forms mixed, folders within included; others named."""
    folder = tmp_path / "parts"
    jsonl(folder / "b.jsonl", rows(2))
    as_parquet(folder / "a" / "part.parquet", list(rows(2, start=10)))
    as_csv(folder / "c.csv", rows(2, start=20))
    (folder / "README.md").write_text("notes")
    (folder / ".hidden.jsonl").write_text("no row")
    ingest(train=str(folder), evaluation=evaluation)
    ids = [row.id for row in ingest.rows("train")]
    assert ids == ["part:1", "part:2", "b:1", "b:2", "c:2", "c:3"]
    source = ingest.report()["inputs"]["data.train"]
    assert source["ignored"] == [str(folder / ".hidden.jsonl"), str(folder / "README.md")]
    assert [file["rows_read"] for file in source["files"]] == [2, 2, 2]


def test_crlf_and_bom(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A byte order mark and CRLF line ends do no harm, and CRLF within texts becomes LF."""
    values = rows(3)
    values[0]["document"] = "first line\r\nsecond line of the document"
    text = "".join(json.dumps(value) + "\r\n" for value in values)
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    ingest(train=str(tmp_path / "train.jsonl"), evaluation=evaluation)
    from_json = [(row.document, row.references) for row in ingest.rows("train")]
    as_csv(tmp_path / "train.csv", values, line_end="\r\n")
    content = (tmp_path / "train.csv").read_bytes()
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbf" + content)
    ingest(train=str(tmp_path / "train.csv"), evaluation=evaluation)
    assert [(row.document, row.references) for row in ingest.rows("train")] == from_json
    assert from_json[0][0] == "first line\nsecond line of the document"
    assert len(from_json) == 3


def test_other_text_is_unchanged(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """White space, quotes and any script pass through as they are."""
    text = "  ``quoted''  \t and\u00a0spaced \n\n  中文 и русский 🙂 \x0c end\r "
    train = jsonl(tmp_path / "train.jsonl", [{"document": text, "summary": " s "}])
    ingest(train=train, evaluation=evaluation)
    assert [(row.document, row.references) for row in ingest.rows("train")] == [(text, (" s ",))]


def test_blank_lines(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """Blank lines are no rows, and line numbers count them."""
    first, second = (json.dumps(row) for row in rows(2))
    ingest(train=jsonl(tmp_path / "t.jsonl", [first, "", "  ", second]), evaluation=evaluation)
    assert [row.id for row in ingest.rows("train")] == ["t:1", "t:4"]
    assert ingest.report()["inputs"]["data.train"]["rows_read"] == 2


def test_array_over_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array is read the same whatever the chunks its text comes in."""
    values = [*rows(5), {"document": "x" * 300, "n": 12345}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values, indent=2))
    for chunk in (1, 7, 64, 100_000):
        monkeypatch.setattr(json_array, "CHUNK", chunk)
        assert [raw.value for raw in read_array(source_file(path))] == values


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_any_text_comes_back(pairs: list[tuple[str, str]]) -> None:
    """Whatever the csv and json modules write is read back, row for row."""
    values = [{"document": one, "summary": two} for one, two in pairs]
    with tempfile.TemporaryDirectory() as folder:
        table, array = Path(folder) / "a.csv", Path(folder) / "a.json"
        as_csv(table, values)
        array.write_text(json.dumps(values))
        assert [raw.value for raw in read_csv(source_file(table))] == values
        assert [raw.value for raw in read_array(source_file(array))] == values


def test_array_values_are_those_of_json(tmp_path: Path) -> None:
    """Numbers keep their kind and every digit; NaN is read as json does."""
    text = '[{"n": 12345678901234567890123, "x": 0.1, "y": 1e400, "z": NaN, "t": "\\ud83d"}]'
    (tmp_path / "a.json").write_text(text)
    (raw,) = read_array(source_file(tmp_path / "a.json"))
    assert repr(raw.value) == repr(json.loads(text)[0])


def test_bad_characters_in_an_array_cost_their_row_only(
    tmp_path: Path, ingest: Ingest, evaluation: str
) -> None:
    """A byte that is not UTF-8 and half a surrogate are rejected by row; nothing is replaced."""
    values = [json.dumps(row).encode() for row in rows(5)]
    values[1] = values[1].replace(b"Summary", b"R\xe9sum\xe9")
    values[3] = values[3].replace(b"Summary", b"\\ud83d")
    (tmp_path / "t.json").write_bytes(b"[" + b",\n".join(values) + b"]")
    ingest(train=str(tmp_path / "t.json"), evaluation=evaluation, max_rejected_share=LENIENT)
    assert [row.id for row in ingest.rows("train")] == ["t:1", "t:3", "t:5"]
    assert [reject["line"] for reject in ingest.rejects()] == [2, 4]
    assert all("save the file as UTF-8" in reject["problem"] for reject in ingest.rejects())


def test_array_that_is_nested_too_deeply(tmp_path: Path) -> None:
    """50,000 opening brackets are an error that names the row; they do not fill the memory."""
    (tmp_path / "a.json").write_text('[{"a": 1}, ' + "[" * 50_000)
    with pytest.raises(DataError, match=r"a\.json is not valid JSON at row 2"):
        list(read_array(source_file(tmp_path / "a.json")))


def test_array_that_ends_too_early(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A half-written array loses its last row, which is named by its number."""
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows(4))[:-30])
    ingest(train=str(path), evaluation=evaluation, max_rejected_share=LENIENT)
    assert [row.id for row in ingest.rows("train")] == ["train:1", "train:2", "train:3"]
    (reject,) = ingest.rejects()
    assert (reject["line"], reject["file"]) == (4, str(path))
    assert "half-written" in reject["problem"]


def test_array_not_closed(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """An array that ends after a whole row, without its bracket, is reported too."""
    (tmp_path / "train.json").write_text(json.dumps(rows(4))[:-1])
    ingest(train=str(tmp_path / "train.json"), evaluation=evaluation, max_rejected_share=LENIENT)
    assert len(ingest.rows("train")) == 4
    assert "not closed" in ingest.rejects()[0]["problem"]


@pytest.mark.parametrize(
    "text", ['[{"a": 1} {"a": 2}]', '[{"a": 1}, {"a" 2}, {"a": 3}]', "[{}] []"]
)
def test_broken_array(text: str, tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """An array broken before its end stops the flow: what follows cannot be told apart."""
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError, match=r"train\.json.*JSONL"):
        ingest(train=str(tmp_path / "train.json"), evaluation=evaluation)


def test_empty_array(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """An array without rows is an empty file."""
    (tmp_path / "train.json").write_text("[]\n")
    with pytest.raises(DataError, match="holds no rows"):
        ingest(train=str(tmp_path / "train.json"), evaluation=evaluation)


def test_broken_parquet(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A half-written Parquet file is refused by name."""
    path = Path(as_parquet(tmp_path / "train.parquet", list(rows(50))))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train\.parquet cannot be read as Parquet"):
        ingest(train=str(path), evaluation=evaluation)


def test_parquet_bad_rows(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """Bad Parquet rows are named by row number."""
    values: list[dict[str, object]] = [{**row} for row in rows(6)]
    values[4]["summary"] = None
    train = as_parquet(tmp_path / "train.parquet", values)
    ingest(train=train, evaluation=evaluation, max_rejected_share=LENIENT)
    (reject,) = ingest.rejects()
    assert (reject["line"], reject["problem"]) == (
        5,
        '"summary" is null, not text; correct it or set data.fields.summary',
    )
    assert json.loads(reject["raw"])["document"] == document(4)
