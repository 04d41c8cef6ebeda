"""Data with one fault: no file, no rows, another format, broken records, columns and conversations."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broken_inputs import Case, jsonl, recipe_of, rows, write_recipe

Content = str | bytes | Callable[[], bytes]
CHAT = {"prompt": {"format": "chat", "chat_template": "llama-2"}}


def file(name: str, content: Content, words: str, case: str = "", **parts: Any) -> Case:
    """Training data in one file `name` with this content."""

    def make(folder: Path, base: Path) -> Path:
        values = recipe_of(folder, base, **parts)
        made = content() if callable(content) else content
        path = folder / name
        path.write_bytes(made if isinstance(made, bytes) else made.encode("utf-8", "surrogatepass"))
        values["data"]["train"] = str(path)
        return write_recipe(folder, values)

    return Case(f"data-{case or name}", make, words)


def place(case: str, make: Callable[[Path], str], words: str, **data: Any) -> Case:
    """Training data in a place that `make` makes."""

    def write(folder: Path, base: Path) -> Path:
        values = recipe_of(folder, base)
        values["data"] |= {"train": make(folder)} | data
        return write_recipe(folder, values)

    return Case(f"data-{case}", write, words)


def every(case: str, change: Callable[[dict[str, Any]], Any], words: str, **parts: Any) -> Case:
    """JSONL in which every row is changed."""
    content = "".join(json.dumps(change(row)) + "\n" for row in rows())
    return file("rows.jsonl", content, words, case, **parts)


def some(case: str, row: str | bytes, words: str) -> Case:
    """JSONL in which three rows of sixty are this."""
    whole = [json.dumps(r).encode() for r in rows(57)]
    made = row.encode("utf-8", "surrogatepass") if isinstance(row, str) else row
    return file("rows.jsonl", b"\n".join([*whole[:5], *[made] * 3, *whole[5:]]), words, case)


def chat(case: str, messages: Any, words: str) -> Case:
    """Conversations that cannot be learnt from."""
    content = "".join(json.dumps({"messages": messages}) + "\n" for _ in range(60))
    return file("rows.jsonl", content, words, f"chat-{case}", **CHAT)


def csv(header: str, line: Callable[[dict[str, Any]], str]) -> str:
    return "\n".join([header, *map(line, rows())]) + "\n"


def _parquet(**columns: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        return bytes(sink.getvalue())

    return make


def _zip() -> bytes:
    import io

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("rows.jsonl", json.dumps(rows()[0]))
    return stream.getvalue()


def _fifo(folder: Path) -> str:
    os.mkfifo(folder / "rows.jsonl")
    return str(folder / "rows.jsonl")


def _sparse(folder: Path) -> str:
    with (folder / "rows.jsonl").open("wb") as stream:
        stream.truncate(60 * 2**20)
    return str(folder / "rows.jsonl")


def _empty_folder(folder: Path) -> str:
    (folder / "rows").mkdir()
    return str(folder / "rows")


def _hidden(folder: Path) -> str:
    (folder / "rows").mkdir()
    jsonl(folder / "rows/.hidden.jsonl", rows())
    return str(folder / "rows")


def _pictures(folder: Path) -> str:
    (folder / "rows").mkdir()
    (folder / "rows/cat.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return str(folder / "rows")


def _link_loop(folder: Path) -> str:
    (folder / "rows.jsonl").symlink_to("rows.jsonl")
    return str(folder / "rows.jsonl")


def _folder_loop(folder: Path) -> str:
    (folder / "rows/inner").mkdir(parents=True)
    (folder / "rows/inner/again").symlink_to("..")
    return str(folder / "rows")


def _broken_link(folder: Path) -> str:
    (folder / "rows.jsonl").symlink_to("gone.jsonl")
    return str(folder / "rows.jsonl")


LINES = "".join(json.dumps(row) + "\n" for row in rows())
ANSWERED = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]

DATA = [
    # no file of rows
    place("missing", lambda folder: str(folder / "gone.jsonl"), "gone.jsonl"),
    place("empty-folder", _empty_folder, "rows"),
    place("hidden-files-alone", _hidden, "rows"),
    place("pictures-alone", _pictures, "rows"),
    place("pipe", _fifo, "rows.jsonl"),
    place("dev-zero", lambda _: "/dev/zero", "/dev/zero"),
    place("dev-null", lambda _: "/dev/null", "/dev/null"),
    place("link-loop", _link_loop, "rows.jsonl"),
    place("folder-loop", _folder_loop, "rows"),
    place("broken-link", _broken_link, "rows.jsonl"),
    place("path-of-5000", lambda folder: str(folder / ("x" * 5000)), "data.train"),
    place("60-MB-of-zeros", _sparse, "rows.jsonl"),
    place("hub-unpinned", lambda _: "hub:acme/rows", "data.revision"),
    place("s3-without-bucket", lambda _: "s3://", "s3://"),
    place("evaluation-missing", lambda f: str(f / "data.jsonl"), "gone", evaluation="gone.jsonl"),
    # files of another kind
    file("rows.jsonl", "", "rows.jsonl", "empty-file"),
    file("rows.jsonl", "\n \n\t\n", "rows.jsonl", "blank-lines"),
    file("rows.jsonl", bytes(range(256)) * 40, "rows.jsonl", "binary"),
    file("rows.jsonl", b"\0" * 4096, "rows.jsonl", "zeros"),
    file("rows.jsonl", LINES.encode("utf-16")[:-1], "rows.jsonl", "utf-16-cut-short"),
    file("rows.jsonl", LINES.encode("cp037"), "rows.jsonl", "ebcdic"),
    file("rows.jsonl", "<!DOCTYPE html><html>404</html>\n", "rows.jsonl", "web-page"),
    file("rows.jsonl", "version https://git-lfs.github.com/spec/v1\n", "rows.jsonl", "lfs-pointer"),
    file("rows.jsonl", _zip, "rows.jsonl", "zip-named-jsonl"),
    file("rows.jsonl", _parquet(a=[1, 2]), "rows.jsonl", "parquet-named-jsonl"),
    file(
        "rows.jsonl",
        csv("dialogue,summary", lambda r: f"a,{r['id']}"),
        "rows.jsonl",
        "csv-named-jsonl",
    ),
    file("rows.jsonl.gz", gzip.compress(LINES.encode())[:-300], "rows.jsonl.gz", "gz-cut-short"),
    file("rows.jsonl.gz", b"\x1f\x8b" + b"x" * 99, "rows.jsonl.gz", "gz-garbage"),
    file("rows.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"x" * 99, "rows.jsonl.zst", "zst-garbage"),
    file("rows.xlsx", _zip, "rows.xlsx"),
    file("rows.pkl", b"\x80\x04K\x01.", "rows.pkl"),
    file("rows.sqlite", b"SQLite format 3\0", "rows.sqlite"),
    file("rows.parquet", b"PAR1" + b"x" * 99 + b"PAR1", "rows.parquet", "parquet-garbage"),
    file(
        "rows.parquet", lambda: _parquet(a=["x"] * 99)()[:-40], "rows.parquet", "parquet-cut-short"
    ),
    file("rows.parquet", _parquet(dialogue=[], summary=[]), "rows.parquet", "parquet-no-rows"),
    file("rows.parquet", _parquet(a=[1] * 9, b=[2] * 9), "rows.parquet", "parquet-numbers"),
    file("rows.json", "", "rows.json", "json-empty"),
    file("rows.json", "[", "rows.json", "json-cut-short"),
    file("rows.json", "[]", "rows.json", "json-no-rows"),
    file("rows.json", "3", "rows.json", "json-number"),
    file("rows.json", '{"data": {"a": 1}}', "rows.json", "json-no-list"),
    file("rows.json", "[" * 100_000, "rows.json", "json-nested"),
    file("rows.json", json.dumps([1, "a", None] * 20), "rows.json", "json-scalars"),
    # CSV
    file("rows.csv", "", "rows.csv", "csv-empty"),
    file("rows.csv", "dialogue,summary\n", "rows.csv", "csv-header-alone"),
    file("rows.csv", csv("a,b", lambda r: '"x'), "rows.csv", "csv-open-quotes"),
    file("rows.csv", csv("dialogue,dialogue", lambda r: "a,b"), "rows.csv", "csv-column-twice"),
    file("rows.csv", csv("dialogue,summary", lambda r: "a,b,c,d"), "rows.csv", "csv-ragged"),
    file("rows.csv", csv("dialogue,summary", lambda r: ","), "rows.csv", "csv-empty-cells"),
    file("rows.csv", b"dialogue,summary\n" + bytes(range(128, 256)) * 20, "rows.csv", "csv-binary"),
    # rows
    every("lists", lambda row: list(row.values()), "rows.jsonl"),
    every("numbers", lambda row: 3, "rows.jsonl"),
    every("nulls", lambda row: None, "rows.jsonl"),
    every("no-summary", lambda row: {"dialogue": row["dialogue"]}, "summary"),
    every("no-document", lambda row: {"summary": row["summary"]}, "rows.jsonl"),
    every("other-columns", lambda row: {"a": "x", "b": "y"}, "rows.jsonl"),
    every("documents-of-numbers", lambda row: row | {"dialogue": 3}, "rows.jsonl"),
    every("documents-of-objects", lambda row: row | {"dialogue": {"a": 1}}, "rows.jsonl"),
    every("null-summaries", lambda row: row | {"summary": None}, "rows.jsonl"),
    every("blank-documents", lambda row: row | {"dialogue": " \n"}, "rows.jsonl"),
    every("all-alike", lambda row: rows()[0], "rows.jsonl|evaluation|row"),
    every(
        "fields-that-are-not-there",
        lambda row: row,
        "documnt",
        data={"train": "x", "evaluation_share": 0.3, "fields": {"document": "documnt"}},
    ),
    some("no-json", "{dialogue: x}", r"rows.jsonl:6"),
    some("cut-short", '{"dialogue": "Ann: hel', r"rows.jsonl:6"),
    some("columns-gone", '{"id": 3}', r"rows.jsonl:6"),
    some("keys-twice", '{"dialogue": "a", "dialogue": "b", "summary": "c"}', r"rows.jsonl"),
    some("latin-1", '{"dialogue": "caf\xe9", "summary": "b"}'.encode("latin-1"), r"rows.jsonl"),
    some("half-characters", '{"dialogue": "\\ud800", "summary": "b"}', r"rows.jsonl"),
    some("nested", '{"dialogue": ' + "[" * 50_000, r"rows.jsonl:6"),
    some("nan", '{"dialogue": NaN, "summary": "b"}', r"rows.jsonl:6"),
    some("5000-digits", '{"dialogue": ' + "9" * 5000 + ', "summary": "b"}', r"rows.jsonl:6"),
    # conversations
    chat("texts", "hello", "rows.jsonl"),
    chat("empty", [], "rows.jsonl"),
    chat("numbers", [1, 2], "rows.jsonl"),
    chat("no-answer", ANSWERED[:1], "rows.jsonl"),
    chat("no-question", ANSWERED[1:], "rows.jsonl"),
    chat("unknown-role", [{"role": "wizard", "content": "x"}, ANSWERED[1]], "rows.jsonl"),
    chat("no-content", [{"role": "user"}, ANSWERED[1]], "rows.jsonl"),
    chat("null-content", [{"role": "user", "content": None}, ANSWERED[1]], "rows.jsonl"),
    chat("two-answers", [*ANSWERED, ANSWERED[1]], "rows.jsonl"),
    chat("blank-answer", [ANSWERED[0], {"role": "assistant", "content": " "}], "rows.jsonl"),
]
