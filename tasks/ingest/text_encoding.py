"""Which encoding a text file is in: UTF-8 or what its mark says; another is named, not guessed."""

from __future__ import annotations

import codecs
import functools
import io
import re
from typing import TextIO

from tasks.contracts.errors import DataError
from tasks.ingest.byte_streams import head_of, open_bytes
from tasks.ingest.row_types import SourceFile

MARKS = (
    codecs.BOM_UTF8,
    codecs.BOM_UTF32_LE,
    codecs.BOM_UTF32_BE,
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF16_BE,
)
UTF8 = "utf-8-sig"  # with or without a mark
# In Latin, Greek and Cyrillic text every blank and line end has a NUL beside it.
UTF16_BLANKS = {
    "le": (b" \0", b"\n\0", b",\0", b'"\0'),
    "be": (b"\0 ", b"\0\n", b"\0,", b'\0"'),
}
FEW = 3
WESTERN_MARKS = "’‘“”–—…€£§°©®«»¿¡•\u00a0"  # noqa: RUF001
LOOKED_AT_BYTES, NAMED_FROM_BYTES = 1 << 24, 1 << 16


def encoding_of(file: SourceFile, head: bytes) -> str:
    """The codec to read the file with. Raises DataError for UTF-16 without a mark, and unknown names."""
    if file.options.encoding:
        encoding = _known(file.options.encoding)
        if not head.startswith(MARKS) and not _is_utf8(file):
            return encoding
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if order := _utf16_order(head):
        raise DataError(
            f"{file.name} is not UTF-8 but looks like UTF-16 without a mark: save it as UTF-8, or set "
            f"data.encoding: utf-16-{order}"
        )
    if head.count(0) > len(head) // 2:
        raise DataError(f"{file.name} begins with NUL bytes, not text; write or copy it again")
    return UTF8


def _is_utf8(file: SourceFile) -> bool:
    """Whether the file's begin is UTF-8 and not ASCII alone: no text in another encoding is by chance."""
    with open_bytes(file) as stream:
        content = stream.read(NAMED_FROM_BYTES * 16)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError:
        return False
    return not text.isascii() and "\0" not in text


def _known(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        "".encode(name)  # not of codecs that are no encodings of text, such as base64
    except (LookupError, ValueError) as error:
        raise DataError(
            f"data.encoding: {encoding} is no encoding that Python knows; correct it (for example cp1252)"
        ) from error
    return UTF8 if name in ("utf-8", "utf_8") else name


def _utf16_order(head: bytes) -> str | None:
    for order, marks in UTF16_BLANKS.items():
        pairs = [at for at in range(0, len(head) - 1, 2) if head[at : at + 2] in marks]
        if len(pairs) > FEW and len(pairs) > 0.9 * sum(head.count(blank) for blank in b' \n,"'):
            return order
    return None


def open_text(file: SourceFile, newline: str | None) -> TextIO:
    """The file as text. Bytes that are not of its encoding become lone surrogates, which rows may not hold.

    `newline`: as for `open`.
    """
    encoding = encoding_of(file, head_of(file))
    return io.TextIOWrapper(
        open_bytes(file), encoding=encoding, errors="surrogateescape", newline=newline
    )


def undecodable(file: SourceFile, text: str) -> str:
    """The problem with a row whose text holds bytes that are not of the file's encoding; else empty."""
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        return _problem(file, f"byte 0x{byte:02x} at character {error.start + 1}")
    return ""


def undecodable_bytes(file: SourceFile, error: UnicodeDecodeError) -> str:
    """The problem with a row of bytes that are not UTF-8."""
    return _problem(file, f"byte 0x{error.object[error.start]:02x} at byte {error.start + 1}")


def _problem(file: SourceFile, where: str) -> str:
    if file.options.encoding:
        return f"is not {file.options.encoding} ({where}); correct the row, or data.encoding"
    likely = _likely(file)
    named = f", or set data.encoding (it looks like {likely})" if likely else ""
    return f"is not UTF-8 ({where}); save the file as UTF-8{named}"


@functools.lru_cache(maxsize=64)
def _likely(file: SourceFile) -> str:
    """What the lines that are not UTF-8 look like; empty where nothing fits."""
    import charset_normalizer

    lines: list[bytes] = []
    with open_bytes(file) as stream:
        for line in stream.read(LOOKED_AT_BYTES).splitlines(keepends=True):
            try:
                line.decode()
            except UnicodeDecodeError:
                lines.append(line[:NAMED_FROM_BYTES])
            if sum(map(len, lines)) > NAMED_FROM_BYTES:
                break
    content = b"".join(lines)[:NAMED_FROM_BYTES]
    if _is_western(content):
        return "cp1252"
    best = charset_normalizer.from_bytes(content).best()
    return best.encoding if best else ""


def _is_western(content: bytes) -> bool:
    """Whether accented letters and typographic marks of cp1252 stand among Latin letters.

    charset_normalizer takes a few accented words for Arabic or Greek.
    """
    text = content.decode("cp1252", errors="replace")
    special = [mark for mark in text if not mark.isascii()]
    latin = sum(mark.isascii() and mark.isalpha() for mark in text)
    return (
        all(mark.isalpha() or mark in WESTERN_MARKS for mark in special)
        and 2 * len(special) < latin
        and not re.search("[A-Za-z][\u00bf\u00a1]", text)
    )
