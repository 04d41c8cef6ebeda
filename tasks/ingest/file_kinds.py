"""What a file is by its name and first bytes: a format that is read, or one that is named for what it is.

Considered: python-magic (needs the C library libmagic) and filetype (knows neither Parquet, Arrow, zstd nor
pickles): the few formats that people keep rows in are told by their first bytes.
"""

from __future__ import annotations

import codecs
from pathlib import PurePosixPath

JSON, CSV, TABLES = (
    (".jsonl", ".ndjson", ".json"),
    (".csv", ".tsv"),
    (".parquet", ".arrow", ".feather"),
)
SUFFIXES = (*JSON, *CSV, *TABLES)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")  # read, in front of the suffixes of text formats
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")  # refused in a folder: rows may be inside
SUFFIXES_TEXT = f"{', '.join(SUFFIXES)} (or these with {', '.join(COMPRESSED)})"
HEAD_BYTES = 4096
COMPRESSION_MARKS = {
    "gzip": b"\x1f\x8b",
    "bz2": b"BZh",
    "xz": b"\xfd7zXZ\x00",
    "zstd": b"\x28\xb5\x2f\xfd",
}
UNPACK = "unpack it, and name the files inside"
TO_PARQUET = "write its rows as Parquet or JSONL"
# First bytes: what such a file is, and how its rows come out of it.
MARKS: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "Parquet", "name it .parquet"),
    (b"ARROW1", "an Arrow file", "name it .arrow"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "name it .arrow"),
    (b"FEA1", "a Feather file of version 1", f"{TO_PARQUET} (pandas.read_feather)"),
    (b"PK\x03\x04", "a zip archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"\x80\x02", "a pickle", f"a pickle runs code when it is read: {TO_PARQUET}"),
    (b"\x80\x03", "a pickle", f"a pickle runs code when it is read: {TO_PARQUET}"),
    (b"\x80\x04", "a pickle", f"a pickle runs code when it is read: {TO_PARQUET}"),
    (b"\x80\x05", "a pickle", f"a pickle runs code when it is read: {TO_PARQUET}"),
    (b"\x93NUMPY", "a NumPy array", TO_PARQUET),
    (b"SQLite format 3\x00", "an SQLite database", TO_PARQUET),
    (b"\x89HDF", "an HDF5 file", TO_PARQUET),
    (b"Obj\x01", "an Avro file", TO_PARQUET),
    (b"ORC", "an ORC file", f"{TO_PARQUET} (pandas.read_orc)"),
    (b"%PDF", "a PDF document", "take the text out of it"),
    (b"\xd0\xcf\x11\xe0", "an old Office file (.xls, .doc)", "save its sheet as CSV (UTF-8)"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "run: git lfs pull"),
    (b"<!doctype html", "a web page, not data", "look at it: a failed download, or a login page"),
    (b"<html", "a web page, not data", "look at it: a failed download, or a login page"),
    (b"<?xml", "XML", TO_PARQUET),
)
BY_SUFFIX = {
    ".xlsx": ("an Excel workbook", "save its sheet as CSV (UTF-8)"),
    ".xls": ("an Excel workbook", "save its sheet as CSV (UTF-8)"),
    ".txt": ("plain text, which has no columns", "write a JSON object a line, with named texts"),
    ".pkl": ("a pickle", f"a pickle runs code when it is read: {TO_PARQUET}"),
    ".pickle": ("a pickle", f"a pickle runs code when it is read: {TO_PARQUET}"),
    ".gz": (
        "compressed, of a format its name does not say",
        "name it NAME.jsonl.gz or NAME.csv.gz",
    ),
} | dict.fromkeys(ARCHIVES, ("an archive", UNPACK))


def data_suffix(name: str) -> str:
    """The suffix of a format that is read, without that of a compression; empty for other files."""
    path = PurePosixPath(name.lower())
    suffix = PurePosixPath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    if path.suffix in COMPRESSED and suffix in TABLES:
        return ""
    return suffix if suffix in SUFFIXES else ""


def is_archive(name: str) -> bool:
    """Whether rows may be inside that nobody reads: an archive, or a compressed file without a format."""
    path = PurePosixPath(name.lower())
    inner = PurePosixPath(path.stem).suffix
    return path.suffix in ARCHIVES or (
        path.suffix in COMPRESSED and not data_suffix(name) and inner in ("", ".tar", *TABLES)
    )


def compression_of(head: bytes) -> str | None:
    """gzip, bz2, xz or zstd, by the first bytes."""
    return next((n for n, mark in COMPRESSION_MARKS.items() if head.startswith(mark)), None)


def named(name: str, head: bytes) -> tuple[str, str] | None:
    """What a file that is not read is, and how to get its rows; None where that is not known."""
    path = PurePosixPath(name.lower())
    if head.startswith(b"PK\x03\x04") and path.suffix == ".xlsx":
        return BY_SUFFIX[".xlsx"]
    found = by_mark(head)
    if found is None and (compression := compression_of(head)):
        found = (f"compressed ({compression})", "name it NAME.jsonl.gz, NAME.csv.gz and the like")
    return found or BY_SUFFIX.get(path.suffix)


def by_mark(head: bytes) -> tuple[str, str] | None:
    """What a file that begins so is, and how to get its rows; None for text."""
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    for mark, what, advice in MARKS:
        if head.startswith(mark) or (mark[:1] == b"<" and text.startswith(mark)):
            return what, advice
    return ("a tar archive", UNPACK) if head[257:262] == b"ustar" else None
