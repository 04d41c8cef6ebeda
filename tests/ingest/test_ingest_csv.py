"""CSV into rows: what is read, what is found out, and that no row is made of pieces of others.

Over 250 lines: one table of files, with what becomes of each.
"""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_files import LENIENT, Ingest, rows, source_file

from tasks.contracts.errors import DataError
from tasks.ingest.csv_rows import read_csv
from tasks.ingest.reading import sample
from tasks.ingest.row_types import Raw


def read(path: Path, content: str | bytes, **options: object) -> list[Raw]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_csv(source_file(path, **options)))


def test_lines_inside_quotes(tmp_path: Path) -> None:
    """A row is named by the line it starts in, whatever lines its fields span."""
    text = '\ndocument,summary\n"two\nlines",s\nthird,t\n\nfifth,u\n'
    found = [
        (raw.line, raw.value and raw.value["document"]) for raw in read(tmp_path / "a.csv", text)
    ]
    assert found == [(3, "two\nlines"), (5, "third"), (7, "fifth")]


BROKEN = {
    "a quote that is not doubled": (
        '"He wrote "fine", and left",s\n',
        r":3 .*line 3: a quote that is not",
    ),
    "the same over several lines": (
        '"Bob: Yes, I did.\nHe wrote "fine".\nBye.",s\n',
        r":3 .*line 4",
    ),
    "a backslash before a quote": ('"He wrote \\"fine\\"",s\n', "a backslash before a quote"),
    "a quote that is not closed": ('"b,2\nc,3\n', r":3 .*not closed until the end, line 6"),
    "too few fields": ("d\n", r":3 has 1 fields where the header has 2;"),
    "too many fields": ("e,5,6\n", r":3 has 3 fields where the header has 2"),
    "a line end outside quotes": ("Ann: Hello.\nBob: Yes, I did.\nBye.,s\n", r":3 has 1 fields"),
    "a blank before the quote": ('a, "b"\n', r":3 .*a blank before an opening quote"),
    "a quote in a field that is not quoted": ('a 5" nail,b\n', r":3 has a quote in a field"),
    "a joined file's mark before the quote": ('\ufeff"a","b"\n', r":3 has a quote in a field"),
    "a carriage return outside quotes": ("a\rb,c\n", ":3 has 1 fields"),
    "a carriage return after a row": ("a,b\rc,d\n", ":3 ends in a carriage return alone"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_record_refuses_the_file(kind: str, tmp_path: Path) -> None:
    """Where the next record begins is not known, so the file is refused; the line to correct is named."""
    record, problem = BROKEN[kind]
    with pytest.raises(
        DataError, match=rf"a\.csv{problem}" if problem[0] == ":" else problem
    ) as error:
        read(tmp_path / "a.csv", f"document,summary\na,1\n{record}g,8\nh,9\n")
    assert "\n" not in str(error.value)


def test_all_miscounted_lines_are_named(tmp_path: Path) -> None:
    """Every record with a wrong number of fields is in the one error."""
    with pytest.raises(DataError, match=r"a\.csv:3 has 1 fields .*so have lines 5, 6"):
        read(tmp_path / "a.csv", "document,summary\na,1\nd\ng,8\ne,5,6\nx,y,z\nh,9\n")


@pytest.mark.parametrize("end", ['h,"half', "half"])
def test_half_written_last_line(end: str, tmp_path: Path) -> None:
    """A last line that ends in the middle costs itself alone."""
    first, last = read(tmp_path / "a.csv", f"document,summary\na,1\n{end}")
    assert first.value == {"document": "a", "summary": "1"}
    assert (last.line, last.problem[:15]) == (3, "is half-written")


def test_both_files_of_a_recipe_are_named(tmp_path: Path, ingest: Ingest) -> None:
    """Broken training and evaluation files come in one error, though each breaks in the middle."""
    good = "".join(f'"{row["document"]}",s\n' for row in rows(150))
    for name in ("train.csv", "dev.csv"):
        (tmp_path / name).write_text(f"document,summary\n{good}d\n")
    with pytest.raises(DataError) as caught:
        ingest(train=str(tmp_path / "train.csv"), evaluation=str(tmp_path / "dev.csv"))
    assert "train.csv:152 has 1" in str(caught.value)
    assert "dev.csv:152 has 1" in str(caught.value)


FOUND = {
    "semicolon": ("document;summary\na, b;1\n", ["delimiter: semicolon"]),
    "tab": ("document\tsummary\na, b\t1\n", ["delimiter: tab"]),
    "bar": ("document|summary\na, b|1\n", ["delimiter: bar"]),
    "a header that two split, rows that one does": (
        '"document","summary;short"\n"a, b",1\n',
        [],
    ),
    "blanks around a name": ('document, summary \n"a, b",1\n', ['column " summary " is called']),
    "an index without a name": (',document,summary\n0,"a, b",1\n', ['a column without a name is called "Un']),
    "carriage returns alone": ('document,summary\r"a, b",1\r', ["line ends are carriage returns alone"]),
    "UTF-16": ("document,summary\n\"a, b\",1\n".encode("utf-16"), ["encoding: utf-16"]),
    "a byte order mark": ("\ufeffdocument,summary\n\"a, b\",1\n", []),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOUND)
def test_what_is_found_is_reported(kind: str, tmp_path: Path) -> None:
    """Delimiter, encoding, line ends and names are found from the file, and what was found is reported."""
    content, notes = FOUND[kind]
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    begin = sample(source_file(path))
    assert [row["document"] for row in begin.rows] == ["a, b"]
    assert len(begin.read_as) == len(notes) + 1
    assert all(a.startswith(b) for a, b in zip(begin.read_as[1:], notes, strict=True))


REFUSED = {
    "two delimiters": ("document,a;summary\nx,b;1\n", "the delimiter may be comma or semicolon"),
    "names twice": ("document,summary,summary\na,b,c\n", r"a\.csv:1 names columns twice: summary"),
    "names twice but for blanks": ("document,summary, summary\na,b,c\n", "names columns twice: summary"),
    "no header": (f"{'a text ' * 40},b\nc,d\n", r"a\.csv:1 looks like a row, .*add a header line"),
    "JSON": ('{"document": "a", "summary": "b"}\n', "holds JSON, not CSV; name it .jsonl"),
    "Excel's line": ("sep=;\ndocument;summary\na;b\n", "a.csv:1 is Excel's line for the delimiter"),
    "UTF-16 without a mark": ("document,summary\na,b\n".encode("utf-16-le"), "data.encoding: utf-16-le"),
    "big-endian": ("document,summary\na,b\n".encode("utf-16-be"), "data.encoding: utf-16-be"),
    "NUL bytes": (b"\0" * 100, "begins with NUL bytes"),
    "a web page": (b"<!DOCTYPE html>\n<html>", "is a web page, not data"),
    "a workbook": (b"PK\x03\x04\x14\0", "is a zip archive"),
    "two kinds of line ends": ("document,summary\r" + "a,1\r" * 70_000 + "a,2\n", "hold a line feed"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_told_is_refused(kind: str, tmp_path: Path) -> None:
    """A file whose form cannot be told is refused, and named for what it is."""
    content, problem = REFUSED[kind]
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=problem):
        list(sample(source_file(path)).rows) and read(path, path.read_bytes())


def test_rows_that_cost_themselves_alone(tmp_path: Path) -> None:
    """A repeated header, a NUL byte and bytes that are not UTF-8 are rejected by line."""
    content = b"document,summary\na,1\ndocument,summary\nb,\0\nc,r\xe9sum\xe9\nd,2\n"
    found = read(tmp_path / "a.csv", content + b"\xef\xbb\xbfdocument, summary\ne,3\n")
    assert [raw.line for raw in found if raw.value] == [2, 6, 8]
    problems = [raw.problem for raw in found if raw.value is None]
    assert problems[0].startswith("repeats the header")
    assert problems[1].startswith("holds a NUL byte")
    assert problems[2].endswith("or set data.encoding (it looks like cp1252)")
    assert problems[3].startswith("repeats the header")


def test_the_encoding_can_be_set(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """data.encoding reads what the message named, and leaves files alone that are UTF-8."""
    (tmp_path / "t.csv").write_bytes("document,summary\nCafé à la crème,Café\n".encode("cp1252"))
    ingest(train=str(tmp_path / "t.csv"), evaluation=evaluation, encoding="cp1252")
    assert ingest.rows("train")[0].document == "Café à la crème"
    (tmp_path / "t.csv").write_text("document,summary\nCafé à la crème,Café\n", encoding="utf-8")
    ingest(train=str(tmp_path / "t.csv"), evaluation=evaluation, encoding="cp1252")
    assert ingest.rows("train")[0].document == "Café à la crème"
    assert "encoding: UTF-8, which this file is in, not cp1252" in ingest.report()["remarks"][0]
    with pytest.raises(DataError, match=r"data\.encoding: cp12520 is no encoding"):
        ingest(train=str(tmp_path / "t.csv"), evaluation=evaluation, encoding="cp12520")


def test_texts_of_missing_values_are_counted(
    tmp_path: Path, ingest: Ingest, evaluation: str
) -> None:
    """Whole texts "nan" and the like are used, counted by text, and the first line is named."""
    text = "".join(
        f"{row['document']},{'nan' if n % 2 else 'None'}\n" for n, row in enumerate(rows(6))
    )
    (tmp_path / "t.csv").write_text(f"document,summary\n{text}")
    ingest(train=str(tmp_path / "t.csv"), evaluation=evaluation)
    first, second = ingest.report()["remarks"]
    assert 't.csv:2 has the summary "None", ' in first
    assert 't.csv:3 has the summary "nan", ' in second
    assert first.endswith("(and 2 more like it)")


def test_long_field(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A field longer than the csv module's own limit is read; one over data.max_row_bytes is refused."""
    long = "word " * 40_000
    (tmp_path / "train.csv").write_text(f"document,summary\n{long},s\n")
    ingest(train=str(tmp_path / "train.csv"), evaluation=evaluation)
    assert ingest.rows("train")[0].document == long
    with pytest.raises(DataError, match=r"train\.csv:2 .*longer than data.max_row_bytes \(1000\)"):
        ingest(train=str(tmp_path / "train.csv"), evaluation=evaluation, max_row_bytes=1000)


def test_header_only(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A header without rows is an empty file."""
    (tmp_path / "train.csv").write_text("document,summary\n")
    with pytest.raises(DataError, match="holds no rows"):
        ingest(train=str(tmp_path / "train.csv"), evaluation=evaluation, max_rejected_share=LENIENT)


# Texts that begin and end with a letter: of a quoted text that begins with a line end and ends with a
# delimiter nobody can say whether its quotes are inside or outside.
FIELD = st.text(st.sampled_from('a",;\n\r é'), max_size=6).map(lambda text: f"a{text}a")
PAIRS = st.lists(st.tuples(FIELD, FIELD | st.just("")), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(
    PAIRS,
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from([";", ",", "\t", "|"]),
    st.data(),
)
def test_damage_invents_no_row(
    pairs: list[tuple[str, str]], quoting: int, delimiter: str, data: st.DataObject
) -> None:
    """One character of a file put in, taken out or changed: the file is refused, or no row but the
    damaged one is new, and rows read and rejected are as many as an independent reader counts.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=quoting, delimiter=delimiter, lineterminator="\r\n")  # type: ignore[arg-type]
    writer.writerow(["document", "summary"])
    start = text.tell()
    writer.writerows(pairs)
    whole = text.getvalue()
    at = data.draw(st.integers(start, len(whole) - 1))
    taken, put = (
        data.draw(st.integers(0, 1)),
        data.draw(st.sampled_from(["", '"', ",", ";", "\n", "a", " "])),
    )
    damaged = whole[:at] + put + whole[at + taken :]
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = read(Path(folder) / "a.csv", damaged)
        except DataError:
            assert damaged != whole  # what the writer wrote is read
            return
    independent = [
        fields
        for fields in csv.reader(io.StringIO(damaged, newline=""), delimiter=delimiter)
        if fields
    ]
    assert len(found) == len(independent) - 1
    used = [raw.value for raw in found if raw.value and any(raw.value.values())]
    written = [dict(zip(("document", "summary"), pair, strict=True)) for pair in pairs]
    assert len(used) <= len(written)  # rows of blank fields alone are rejected later
    assert len([row for row in used if row not in written]) <= 1
