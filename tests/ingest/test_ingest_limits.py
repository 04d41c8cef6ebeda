"""What would never end, or not fit into memory, is refused or costs its own row alone."""

from __future__ import annotations

import bz2
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pandas
import pyarrow
import pytest
from ingest_files import jsonl, rows, source_file

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data
from tasks.ingest.gathering import contents_of, gather
from tasks.ingest.reading import read

ROWS = rows(4)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
LIMIT = 2000
LONG = json.dumps({"document": "x" * 3 * LIMIT, "summary": "s"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", f"{LONG}\n{LINES}"),
        ("a.jsonl", f"{LINES}{LONG}\n{LINES}{LONG}"),
        ("a.json", f'{{"data": [{LONG}, {LINES.strip().replace(chr(10), ",")}]}}'),
        ("a.jsonl", LONG),
    ],
)
def test_a_row_over_the_limit_is_rejected(name: str, content: str, tmp_path: Path) -> None:
    """A row over data.max_row_bytes costs itself alone where its end is known."""
    (tmp_path / name).write_text(content)
    found = list(read(source_file(tmp_path / name, max_row_bytes=LIMIT)))
    assert [raw.value for raw in found if raw.value] == ROWS * ((len(found)) // len(ROWS))
    bad = [raw.problem for raw in found if raw.value is None]
    assert len(bad) == content.count('xxx",') == content.count('x", "summary')
    assert all(f"longer than data.max_row_bytes ({LIMIT})" in problem for problem in bad)


def test_a_table_cell_over_the_limit(tmp_path: Path) -> None:
    """Parquet and Arrow cells are measured before they are read."""
    frame = pandas.DataFrame([*ROWS, {"document": "x" * 9999, "summary": "s"}])
    # A column that is stored once, as a dictionary of its values, is measured by row all the same.
    frame["summary"] = frame["summary"].astype("category")
    frame.to_parquet(tmp_path / "a.parquet")
    table = pyarrow.Table.from_pandas(frame)
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        found = list(read(source_file(tmp_path / name, max_row_bytes=3000)))
        assert [raw.value for raw in found[:4]] == ROWS
        assert "longer than data.max_row_bytes" in found[4].problem


def test_an_array_element_over_the_limit(tmp_path: Path) -> None:
    """In an array the rows after one without end cannot be separated."""
    (tmp_path / "a.json").write_text(f"[{json.dumps(ROWS[0])}, {LONG[:-20]}{'x' * (1 << 21)}")
    with pytest.raises(DataError, match=r"row 2 is longer than data\.max_row_bytes"):
        list(read(source_file(tmp_path / "a.json", max_row_bytes=LIMIT)))


@pytest.mark.parametrize("content", [b"\0" * (1 << 26), b"\n" * (1 << 26), b"a" * (1 << 26)])
def test_what_unpacks_without_end(content: bytes, tmp_path: Path) -> None:
    """A small file that unpacks to gigabytes is refused, by what it states and while it is read."""
    path = tmp_path / "a.jsonl.bz2"
    path.write_bytes(bz2.compress(content, 1))
    with pytest.raises(DataError, match=r"unpacks to|NUL bytes|blank lines"):
        list(read(source_file(path)))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(content, 1))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz says .* unpack to 64 MiB"):
        contents_of("data.train", str(path), "", Data(train=str(path)))


@pytest.mark.parametrize("end", [lambda file: file[:-9], lambda file: file + b"appended by ftp"])
def test_a_gzip_file_with_another_end(end: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Cut off, or with something after it: the error names both, whatever size the end seems to state."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(end(gzip.compress(json.dumps(ROWS[0]).encode())))
    with pytest.raises(DataError, match=r"says at its end .* it was cut off, something follows it"):
        contents_of("data.train", str(path), "", Data(train=str(path)))


def test_files_that_are_none(tmp_path: Path) -> None:
    """Pipes, sockets, devices and files with holes are refused before a byte is waited for."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("hole.jsonl", "hole.csv", "hole.parquet"):
        with (tmp_path / name).open("wb") as file:
            file.write(b"document,summary\na,b\n")
            file.truncate(10 << 30)
    expected = {
        str(tmp_path / "pipe.jsonl"): "is a named pipe",
        "/dev/zero": "is a device",
        str(tmp_path / "hole.jsonl"): "has a hole at byte",
        str(tmp_path / "hole.csv"): "has a hole at byte",
        str(tmp_path / "hole.parquet"): "its ends are not Parquet's",
    }
    for spec, problem in expected.items():
        with pytest.raises(DataError, match=problem):
            contents_of("data.train", spec, "", Data(train=spec))


def test_a_file_that_is_written_to_while_it_is_read(tmp_path: Path) -> None:
    """A file that grows, or goes away, in between is refused: its digest would be of other rows."""
    path = Path(jsonl(tmp_path / "a.jsonl", ROWS))
    (file,) = gather("data.train", str(path), "", Data(train=str(path)), tmp_path / "s").files
    with path.open("a") as more:
        more.write(LINES)
    with pytest.raises(DataError, match="was changed while it was read"):
        list(read(file))
    path.unlink()
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read \(No such file"):
        list(read(file))
