"""JSONL into rows: an object a line; a line that is none costs itself alone."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

from tasks.contracts.errors import DataError
from tasks.ingest.byte_streams import MAX_BLANK_LINES, head_of, open_bytes
from tasks.ingest.json_values import Decoder, is_too_long, too_long
from tasks.ingest.row_types import RAW_CHARACTERS, Raw, SourceFile
from tasks.ingest.text_encoding import UTF8, encoding_of, open_text, undecodable, undecodable_bytes

SKIP_BYTES = 1 << 20
MARK = "\ufeff"


def read_jsonl(file: SourceFile) -> Iterator[Raw]:
    """The file's rows, by line. Raises DataError for a file of blank lines without end."""
    # Bytes where possible: a line is decoded by itself, so that one that is not UTF-8 costs only itself.
    in_bytes = encoding_of(file, head_of(file)) == UTF8
    decoder, limit = Decoder(), file.options.max_row_bytes
    number = blank = blank_lines = 0
    with open_bytes(file) if in_bytes else open_text(file, newline="\n") as stream:
        lines: Any = stream
        while line := lines.readline(limit + 1):
            number += 1
            if _ends(line):
                pass
            elif len(line) > limit:
                yield Raw(number, None, too_long(limit), _shown(line[:RAW_CHARACTERS]))
                while line and not _ends(line):
                    line = lines.readline(SKIP_BYTES)
                continue
            if _without_mark(line).strip():
                yield _row(file, decoder, number, line)
                blank = blank_lines = 0
            else:
                blank, blank_lines = blank + len(line), blank_lines + 1
                if blank > limit or blank_lines > MAX_BLANK_LINES:
                    raise DataError(too_blank(file, number))


def too_blank(file: SourceFile, number: int) -> str:
    """The problem with a file of blank lines before line `number`."""
    return f"{file.name}: hundreds of thousands of blank lines before line {number}; write the file again"


def _ends(line: bytes | str) -> bool:
    return line.endswith(b"\n") if isinstance(line, bytes) else line.endswith("\n")


def _without_mark(line: bytes | str) -> bytes | str:
    # A mark may begin any line of a file that was joined from several.
    if isinstance(line, bytes):
        return line.removeprefix(codecs.BOM_UTF8)
    return line.removeprefix(MARK)


def _shown(line: bytes | str) -> str:
    text = line.decode(errors="replace") if isinstance(line, bytes) else line
    return text[:RAW_CHARACTERS].strip()


def _row(file: SourceFile, decoder: Decoder, number: int, line: bytes | str) -> Raw:
    try:
        bare = _without_mark(line)
        text = bare.decode() if isinstance(bare, bytes) else bare
    except UnicodeDecodeError as error:
        return Raw(number, None, undecodable_bytes(file, error), _shown(line))
    problem = "" if isinstance(line, bytes) else undecodable(file, text)
    if not problem and is_too_long(text, file.options.max_row_bytes):
        problem = too_long(file.options.max_row_bytes)
    if not problem:
        try:
            return decoder.row(number, decoder.whole(text), text.strip())
        except json.JSONDecodeError as error:
            problem = _invalid(decoder, text, error)
        except (ValueError, RecursionError) as error:
            problem = f"is not usable JSON ({error}); correct or remove the line"
    return Raw(number, None, problem, _shown(line))


def _invalid(decoder: Decoder, text: str, error: json.JSONDecodeError) -> str:
    where = f"{error.msg} at column {error.colno}"
    if text.rstrip().endswith(",") and error.msg == "Extra data":
        return (
            "ends in a comma after its object, which is not valid JSON a line: remove the comma (all of "
            "them: sed -i 's/,\\s*$//' FILE)"
        )
    if text.lstrip().startswith("{'"):
        return (
            "is written as Python prints a dict, with single quotes, which is not valid JSON; write the rows "
            "with json.dumps"
        )
    if not text.endswith("\n"):
        return f"is half-written, not valid JSON ({where}); correct or remove the line"
    return f"is not valid JSON ({where}); correct or remove the line"
