"""The formats that rows come in: each is read, or named for what it is with the way out.

Over 250 lines: tables of files, with what becomes of each.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_files import LENIENT, Ingest, jsonl, rows, source_file

from tasks.contracts.errors import DataError
from tasks.ingest.reading import read, sample

ROWS = rows(4)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FRAME = pandas.DataFrame(ROWS)
OBJECTS, UNDER_DATA = "JSON objects one after another", 'one JSON object, the rows under "data"'
INDENTED = [json.dumps(row, indent=1) for row in ROWS]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def zstd(content: bytes) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return bytes(out.getvalue())


def arrow_stream(frame: pandas.DataFrame) -> bytes:
    table, out = pyarrow.Table.from_pandas(frame), io.BytesIO()
    with pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def feather(frame: pandas.DataFrame) -> bytes:
    out = io.BytesIO()
    pyarrow.feather.write_feather(frame, out)
    return out.getvalue()


READ: dict[str, tuple[str, str | bytes, str]] = {
    "gzip": ("a.jsonl.gz", gzip.compress(LINES.encode()), "JSONL"),
    "gzip of two parts": (
        "a.jsonl.gz",
        gzip.compress(LINES[:99].encode()) + gzip.compress(LINES[99:].encode()),
        "JSONL",
    ),
    "gzip without its suffix": ("a.jsonl", gzip.compress(LINES.encode()), "JSONL"),
    "its suffix without gzip": ("a.jsonl.gz", LINES, "JSONL"),
    "bz2": ("a.json.bz2", bz2.compress(json.dumps(ROWS).encode()), "a JSON array"),
    "xz": ("a.csv.xz", lzma.compress(FRAME.to_csv(index=False).encode()), "CSV"),
    "zstd": ("a.jsonl.zst", zstd(LINES.encode()), "JSONL"),
    "TSV": ("a.tsv", FRAME.to_csv(index=False, sep="\t"), "CSV"),
    "an Arrow stream": ("a.arrow", arrow_stream(FRAME), "Arrow"),
    "Feather": ("a.feather", feather(FRAME), "Arrow"),
    "UTF-16": ("a.jsonl", LINES.encode("utf-16"), "JSONL"),
    "UTF-32": ("a.json", json.dumps(ROWS).encode("utf-32"), "a JSON array"),
    "marks of joined files": ("a.jsonl", "\ufeff" + LINES.replace("\n", "\n\ufeff", 1), "JSONL"),
    "carriage returns alone": ("a.jsonl", LINES.replace("\n", "\r"), OBJECTS),
    "indented objects": ("a.jsonl", "\n".join(INDENTED), OBJECTS),
    "rows under data": ("a.json", json.dumps({"version": 1, "data": ROWS}), UNDER_DATA),
    "the same, indented": ("a.json", json.dumps({"data": ROWS, "n": 4}, indent=2), UNDER_DATA),
    "columns": ("a.json", json.dumps(COLUMNS), "one JSON object of 2 columns"),
    "pandas' columns": ("a.json", FRAME.to_json(), "one JSON object of 2 columns"),
    "pandas' index": ("a.json", FRAME.to_json(orient="index"), "one JSON object of rows by number"),
    "pandas' split": (
        "a.json",
        FRAME.to_json(orient="split"),
        'one JSON object of "columns" and "data"',
    ),
    "pandas' table": ("a.json", FRAME.to_json(orient="table", index=False), UNDER_DATA),
    "pandas' records": ("a.json", FRAME.to_json(orient="records", indent=1), "a JSON array"),
    "an array, a row a line": (
        "a.jsonl",
        "[\n" + LINES.rstrip().replace("\n", ",\n") + "\n]\n",
        "a JSON array",
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_read(kind: str, tmp_path: Path) -> None:
    """Each form gives the same rows, and the report says in which form they were."""
    name, content, form = READ[kind]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    file = source_file(path)
    assert [raw.value for raw in read(file)] == ROWS
    assert sample(file).read_as[0].startswith(form)


NAMED: dict[str, tuple[str, str | bytes, str]] = {
    "zip": ("a.zip", b"PK\x03\x04", "it is a zip archive; unpack it"),
    "Excel": ("a.xlsx", b"PK\x03\x04", "it is an Excel workbook; save its sheet as CSV"),
    "old Excel": ("a.xls", b"\xd0\xcf\x11\xe0", "an old Office file"),
    "pickle": ("a.pkl", b"\x80\x04\x95", "it is a pickle; a pickle runs code"),
    "text": ("a.txt", "hello", "plain text, which has no columns"),
    "gzip of unknown content": ("a.gz", gzip.compress(b"x"), r"compressed \(gzip\); name it"),
    "Parquet in gzip": ("a.parquet.gz", gzip.compress(b"x"), r"compressed \(gzip\)"),
    "no suffix": ("rows", LINES, "is by its name none of .jsonl"),
    "SQLite": ("a.db", b"SQLite format 3\0", "an SQLite database; write its rows as Parquet"),
    "gzip twice": ("a.jsonl.gz", gzip.compress(gzip.compress(LINES.encode())), "compressed twice"),
    "half a gzip file": (
        "a.jsonl.gz",
        gzip.compress(LINES.encode())[:-9],
        "cut off|cannot be unpacked",
    ),
    "half an xz file": ("a.jsonl.xz", lzma.compress(LINES.encode())[:-9], "cannot be unpacked"),
    "half a zstd file": ("a.jsonl.zst", zstd(LINES.encode())[:-9], "cannot be read .Truncated"),
    "damaged gzip": (
        "a.jsonl.gz",
        gzip.compress(LINES.encode())[:30] + b"\xff" * 99,
        "cannot be unpacked|cut off",
    ),
    "a web page": ("a.jsonl", "\n<!doctype HTML><html>", "is a web page, not data"),
    "Git LFS": (
        "a.csv",
        "version https://git-lfs.github.com/spec/v1\n",
        "a Git LFS pointer, .*git lfs pull",
    ),
    "Parquet called JSONL": ("a.jsonl", b"PAR1xxPAR1", "is Parquet; name it .parquet"),
    "a pickle called CSV": ("a.csv", b"\x80\x05\x95", "is a pickle; a pickle runs code"),
    "tar called JSONL": ("a.jsonl", b"x" * 257 + b"ustar", "is a tar archive; unpack it"),
    "UTF-16 without a mark": ("a.jsonl", LINES.encode("utf-16-le"), "data.encoding: utf-16-le"),
    "half a Parquet file": ("a.parquet", b"PAR1" + b"x" * 99, "its ends are not Parquet's"),
    "half an Arrow file": ("a.arrow", arrow_stream(FRAME)[:-300], "cannot be read as Arrow"),
    "trailing commas": (
        "a.jsonl",
        LINES.replace("\n", ",\n"),
        "ends in a comma .*sed .*and 3 more like it",
    ),
    "commas between indented objects": (
        "a.json",
        ",\n".join(INDENTED),
        r"a\.json:4 the JSON object that begins here is broken",
    ),
    "a broken indented object": (
        "a.json",
        "\n".join(INDENTED)[:-5],
        r"a\.json:13 the JSON object that begins",
    ),
    "two lists": (
        "a.json",
        json.dumps({"train": ROWS, "test": ROWS}),
        "lists under train, test: which",
    ),
    "an unknown list": ("a.json", json.dumps({"foo": ROWS}), r"""jq -c '\."foo"\[\]'"""),
    "unequal columns": (
        "a.json",
        json.dumps(COLUMNS | {"document": ["a"]}),
        r"not equally long .*\(document: 1, summary: 4",
    ),
    "objects of objects": (
        "a.json",
        json.dumps({"a": {"x": 1}, "b": {"y": 2}}),
        "rows or columns is not known",
    ),
    "arrays one after another": (
        "a.json",
        f"[{LINES[:-1].splitlines()[0]}]\n[]",
        "is a list, and a row is an object",
    ),
    "CSV called JSONL": ("a.jsonl", "document,summary\na,b\n", "if it is CSV, name it .csv"),
    "Python's dicts": (
        "a.jsonl",
        "\n".join(map(str, ROWS)),
        "as Python prints a dict, .*json.dumps",
    ),
    "lists of values": (
        "a.json",
        FRAME.to_json(orient="values"),
        "is a list, and a row is an object with columns",
    ),
    "lists of messages": (
        "a.jsonl",
        (json.dumps([{"role": "user", "content": "Who?"}]) + "\n") * 2,
        'is a list of messages, .* write each list under a name: {"messages"',
    ),
    "columns twice": ("a.parquet", b"", "names columns twice: summary"),
}


TURN = [{"role": "user", "content": "a"}]
ONE_ROW = [
    {"messages": TURN},
    {"conversations": [{"from": "human", "value": "a"}], "tools": [{"name": "t"}]},
    {"prompt": TURN, "completion": TURN},
    {"document": "a", "summary": ["b", "c"]},
    {"document": "a", "meta": {"x": 1}},
]


@pytest.mark.parametrize("row", ONE_ROW, ids=str)
def test_one_object_may_be_one_row(row: dict[str, Any], tmp_path: Path) -> None:
    """An object alone in its file is a row where its lists are conversations or its values texts."""
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(row, indent=indent))
        assert [raw.value for raw in read(source_file(tmp_path / "a.json"))] == [row]


@pytest.mark.parametrize("kind", NAMED)
def test_named_for_what_it_is(kind: str, tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """What is not read is named for what it is, with how to get at its rows."""
    name, content, problem = NAMED[kind]
    path = tmp_path / name
    if content:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        column = pyarrow.array(["a"])
        table = pyarrow.Table.from_arrays([column] * 3, ["document", "summary", "summary"])
        pyarrow.parquet.write_table(table, path)
    with pytest.raises(DataError, match=problem):
        ingest(train=str(path), evaluation=evaluation)


ODD_FIRST_LINES = [
    "[1, 2]",
    '{"document": "a",',
    '{"document": "a", "su',
    "{",
    "text",
    '{"a": 1},',
    "null",
]


@pytest.mark.parametrize("line", ODD_FIRST_LINES)
def test_an_odd_first_line_costs_itself_alone(line: str, tmp_path: Path) -> None:
    """How a file is read does not hang on one odd row, the first included."""
    found = list(read(source_file(Path(jsonl(tmp_path / "a.jsonl", [line, *ROWS])))))
    assert [raw.value for raw in found[1:]] == ROWS
    assert found[0].problem


@pytest.mark.parametrize(
    "wrap",
    [
        "\n".join,
        lambda r: f"[{','.join(r)}]",
        lambda r: f'{{"data": [{",".join(r)}]}}',
    ],
)
def test_repeated_names_are_rejected(wrap: Callable[[list[str]], str], tmp_path: Path) -> None:
    """An object with a name twice, inside too, is rejected by line; the others are read."""
    odd = [
        '{"document": "a", "document": "b", "summary": "c"}',
        '{"document": "a", "m": {"x": 1, "x": 2}}',
    ]
    path = tmp_path / "a.json"
    path.write_text(wrap([json.dumps(ROWS[0]), *odd, json.dumps(ROWS[1])]))
    found = list(read(source_file(path)))
    assert [raw.value for raw in found] == [ROWS[0], None, None, ROWS[1]]
    assert [raw.problem for raw in found[1:3]] == [
        f"has {n} twice in one object; keep one of each" for n in ("document", "x")
    ]


def test_every_form_of_the_encoding_message(tmp_path: Path) -> None:
    """JSON that is not UTF-8 is rejected by row, with the encoding that it looks like."""
    text = json.dumps([{"document": "Un résumé à la carte.", "summary": "s"}], ensure_ascii=False)
    for name in ("a.json", "a.jsonl"):
        path = tmp_path / name
        path.write_bytes((text if name == "a.json" else text[1:-1]).encode("cp1252"))
        (raw,) = read(source_file(path))
        assert "or set data.encoding (it looks like cp1252)" in raw.problem
        (raw,) = read(source_file(path, encoding="cp1252"))
        assert raw.value == {"document": "Un résumé à la carte.", "summary": "s"}


VALUE = st.one_of(
    st.text(max_size=5), st.integers(-3, 3), st.none(), st.lists(st.text(max_size=3), max_size=2)
)
LINE = st.one_of(
    st.dictionaries(st.sampled_from(["document", "summary", "n"]), VALUE).map(json.dumps),
    st.sampled_from(
        [
            "{",
            "}",
            "[]",
            "[1, 2]",
            '"text"',
            "{},",
            '{"a": 1} {"b": 2}',
            "",
            " ",
            "\ufeff{}",
            '{"a": 1, "a": 2}',
        ]
    ),
    st.text(st.characters(exclude_characters="\0\n\r", exclude_categories=["Cs"]), max_size=6),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(LINE, min_size=2, max_size=6))
def test_no_line_is_lost_or_invented(lines: list[str]) -> None:
    """Rows read and rejected are the lines that are not blank; each row is what its own line says.

    Where the whole file is one JSON value (or objects over several lines), it is that value's rows.
    """
    content = "\n".join(lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text(content, newline="")
        try:
            form, found = sample(source_file(path)).read_as[0], list(read(source_file(path)))
        except DataError:
            first = content.lstrip(f"\ufeff{string.whitespace}")[:1]
            assert first in ("[", "{")  # an array or objects, broken
            return
    independent = [
        line for line in content.split("\n") if line.removeprefix("\ufeff").encode().strip()
    ]
    if form == "JSONL":
        assert len(found) == len(independent)
        for raw, line in zip(found, independent, strict=True):
            assert raw.value is None or raw.value == json.loads(line.removeprefix("\ufeff"))


FORMS: dict[str, Callable[[list[dict[str, str]]], str]] = {
    "lines": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "array": json.dumps,
    "indented": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows),
    "under data": lambda rows: json.dumps({"data": rows}, indent=1),
    "columns": lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}),
}
WORD = st.text(st.sampled_from('a",{}[]:\n\\'), max_size=5)
TWO_WORDS = st.fixed_dictionaries({"document": WORD, "summary": WORD})


@settings(max_examples=120, deadline=None)
@given(st.lists(TWO_WORDS, min_size=1, max_size=3), st.sampled_from(sorted(FORMS)), st.data())
def test_damage_to_json_invents_no_row(
    written: list[dict[str, str]], form: str, data: st.DataObject
) -> None:
    """One character put in, taken out or changed: the file is refused, or only its row is new."""
    whole = FORMS[form](written)
    at, taken = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 1))
    put = data.draw(st.sampled_from(["", '"', ",", "{", "}", "[", "]", ":", "a", "\n", "\\"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(whole[:at] + put + whole[at + taken :], newline="")
        try:
            found = list(read(source_file(path)))
        except DataError:
            assert put or taken
            return
    used = [raw.value for raw in found if raw.value]
    usable = [row for row in used if {"document", "summary"} <= set(row)]
    assert len(usable) <= len(written)
    assert len([row for row in usable if row not in written]) <= 1


def test_rows_agree_whatever_the_form(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A compressed CSV in UTF-16 trains on the rows of the plain JSONL file."""
    text = FRAME.to_csv(index=False, sep=";")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode("utf-16")))
    ingest(train=str(tmp_path / "t.csv.gz"), evaluation=evaluation, max_rejected_share=LENIENT)
    assert [row.document for row in ingest.rows("train")] == [row["document"] for row in ROWS]
    (remark,) = ingest.report()["remarks"]
    assert remark.endswith("read as CSV; encoding: utf-16; delimiter: semicolon")
    files: list[dict[str, Any]] = ingest.report()["inputs"]["data.train"]["files"]
    assert files[0]["read_as"] == ["CSV", "encoding: utf-16", "delimiter: semicolon"]
