"""A file's bytes: of regular files alone, out of their compression where they have one."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import zlib
from pathlib import Path
from typing import IO, Any

from tasks.contracts.errors import DataError
from tasks.ingest.file_kinds import HEAD_BYTES, TABLES, compression_of, data_suffix
from tasks.ingest.row_types import SourceFile

# Text shrinks to a tenth, a log of equal lines to a hundredth: what grows more is made to fill a disk.
MAX_EXPANSION, EXPANSION_FREE_BYTES = 100, 1 << 25
# In a row: about a second to read, where unpacking makes them from nothing.
MAX_BLANK_LINES = 1 << 19
GZIP_EMPTY = gzip.compress(b"")
PARQUET_MARK = b"PAR1"
SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
BROKEN_COMPRESSION = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def stamp_of(path: Path) -> tuple[int, int, int]:
    """Size, time of change and inode: what differs once a file was written to."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def require_readable(name: str, path: Path) -> None:
    """Raises DataError, at once, for what would never end or holds bytes that nobody wrote."""
    try:
        found = path.stat()
        kind = stat.S_IFMT(found.st_mode)
        if kind != stat.S_IFREG:
            what = SPECIAL.get(kind, "no regular file")
            raise DataError(f"{name} is {what}, not a file; write the rows to a file and name that")
        with path.open("rb") as stream:
            hole = _first_hole(stream, found.st_size)
            _require_ends(name, path, stream)
            unpacked = _stated_size(stream)
    except OSError as error:
        raise DataError(
            f"{name} cannot be read ({error.strerror}); correct its permissions, or name another"
        ) from error
    if unpacked > max(EXPANSION_FREE_BYTES, MAX_EXPANSION * found.st_size):
        raise DataError(
            f"{name} says at its end that its {found.st_size >> 10} KiB unpack to {unpacked >> 20} MiB, "
            "which no text does: it was cut off, something follows it, or it is made to fill a disk; copy it "
            "again, or unpack it and look"
        )
    if hole < found.st_size and data_suffix(path.name) not in TABLES:
        raise DataError(
            f"{name} has a hole at byte {hole} of {found.st_size}: bytes that were never written, as a "
            "copy that was cut off leaves them; copy it again"
        )


def _require_ends(name: str, path: Path, stream: IO[bytes]) -> None:
    """Before a large file is digested: whether both ends of a Parquet file are there."""
    if path.suffix.lower() == ".parquet" and (size := stream.seek(0, os.SEEK_END)):
        stream.seek(max(0, size - len(PARQUET_MARK)))
        end = stream.read()
        stream.seek(0)
        if end != PARQUET_MARK or stream.read(len(end)) != PARQUET_MARK:
            raise DataError(
                f"{name} cannot be read as Parquet (its ends are not Parquet's: half-written, or of another "
                "format); write the file again"
            )


def _stated_size(stream: IO[bytes]) -> int:
    """How large a gzip file says that it was (its last four bytes, so modulo 4 GiB); else 0."""
    stream.seek(0)
    if compression_of(stream.read(8)) != "gzip" or stream.seek(0, os.SEEK_END) < len(GZIP_EMPTY):
        return 0
    stream.seek(-4, os.SEEK_END)
    return int.from_bytes(stream.read(), "little")


def _expands(name: str, unpacked: int, size: int) -> str:
    return (
        f"{name} unpacks to {unpacked >> 20} MiB or more from {size >> 10} KiB, which no text does: it "
        "was cut off, or is made to fill a disk; copy it again, or unpack it and look"
    )


def _first_hole(stream: IO[bytes], size: int) -> int:
    # A hole reads as NUL bytes, which no text format holds. File systems without holes answer `size`.
    if not size or not hasattr(os, "SEEK_HOLE"):
        return size
    try:
        return os.lseek(stream.fileno(), 0, os.SEEK_HOLE)
    except OSError:
        return size


def head_of(file: SourceFile) -> bytes:
    """The first bytes of the file, out of its compression."""
    with open_bytes(file) as stream:
        return stream.read(HEAD_BYTES)


def open_bytes(file: SourceFile) -> io.BufferedReader:
    """The file's bytes, decompressed by what its first bytes say.

    Reading raises DataError for one that grows beyond all measure.
    """
    stream = file.path.open("rb")
    compression = compression_of(stream.read(8))
    stream.seek(0)
    if compression is None:
        return stream
    return io.BufferedReader(_Unpacked(file, stream, _unpacker(stream, compression)), 1 << 20)


def _unpacker(stream: io.BufferedReader, compression: str) -> Any:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=stream)
    if compression == "bz2":
        return bz2.BZ2File(stream)
    if compression == "xz":
        return lzma.LZMAFile(stream)
    import pyarrow  # the standard library has no zstd before Python 3.14

    return pyarrow.CompressedInputStream(stream, "zstd")


class _Unpacked(io.RawIOBase):
    """The bytes of a decompressor, counted."""

    def __init__(self, file: SourceFile, stream: io.BufferedReader, inner: Any) -> None:
        self.file, self.stream, self.inner, self.count = file, stream, inner, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.inner.read(len(buffer))
        buffer[: len(content)] = content
        self.count += len(content)
        if self.count > max(EXPANSION_FREE_BYTES, MAX_EXPANSION * self.file.size):
            raise DataError(_expands(self.file.name, self.count, self.file.size))
        return len(content)

    def close(self) -> None:
        self.inner.close()
        self.stream.close()
        super().close()
