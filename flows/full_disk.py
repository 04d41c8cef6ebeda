"""A full disk, told as such: which one, how much is free there, and how to go on."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tasks.contracts.errors import PrecisError
from tasks.processes import workspace

ERRNOS = (errno.ENOSPC, errno.EDQUOT)
# As the kernel, SQLite and PostgreSQL say it; what failed in a step's process comes as a text.
TEXTS = ("no space left on device", "disk is full", "disk quota exceeded")
# What SQLAlchemy shows after the error: the statement, its values, a link.
STATEMENT = re.compile(
    r"\n\[SQL: .*?\]$(\n\[parameters: .*?\]$)?(\n\(Background on [^\n]*\))?", re.S | re.M
)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Have an error that a full disk caused name the disk; other errors pass as they are."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        folder = _fullest(error)
        free = shutil.disk_usage(folder).free
        kind = type(error) if isinstance(error, PrecisError) else PrecisError
        reason = STATEMENT.sub("", str(error))
        raise kind(
            f"{reason}\nThe disk of {folder} is full ({free / 2**20:.1f} MiB free). Free some space there, "
            "or name a work folder on another disk (PRECIS_WORK); the same command then goes on from "
            "the last step that was stored"
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_full(error: BaseException) -> bool:
    return any(
        (isinstance(one, OSError) and one.errno in ERRNOS)
        or any(text in str(one).lower() for text in TEXTS)
        for one in _chain(error)
    )


def _fullest(error: BaseException) -> Path:
    """The folder that could not be written to; where no error names it, ours with the least free space."""
    for one in _chain(error):
        if isinstance(one, OSError) and isinstance(one.filename, str):
            for parent in (Path(one.filename), *Path(one.filename).parents):
                if parent.is_dir():
                    return parent
    ours = (
        workspace.work_folder(),
        workspace.EMBEDDED_STORE.absolute(),
        Path(tempfile.gettempdir()),
    )
    return min((f for f in ours if f.is_dir()), key=lambda f: shutil.disk_usage(f).free)
