"""What the machine refuses (a full disk, a folder that may not be written to), told in a sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tasks.contracts.errors import PrecisError

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
# As the kernel, SQLite and PostgreSQL say it: their errors, and those of a step's own process, come as texts.
FULL_TEXTS = ("no space left on device", "disk is full", "disk quota exceeded")
SQLITE_REFUSED = "attempt to write a readonly database"
# What SQLAlchemy shows after the error: the statement, its values, a link.
STATEMENT = re.compile(
    r"\n\[SQL: .*?\]$(\n\[parameters: .*?\]$)?(\n\(Background on [^\n]*\))?", re.S | re.M
)
LITTLE_BYTES = 32 << 20
MIB = 1 << 20
FREE_SPACE = "free some space"


def told(error: BaseException) -> str:
    """Which disk is full, or what may not be written or read, and how to fix it; empty for other errors."""
    for one in _chain(error):
        number = one.errno if isinstance(one, OSError) else None
        name = getattr(one, "filename", None)
        if _is_full(one):
            return _full(Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None)
        if number in REFUSED or SQLITE_REFUSED in str(one):
            what = f"{os.fsdecode(name)!r}" if isinstance(name, str | bytes) else "a file"
            reason = os.strerror(number) if number else str(one).splitlines()[0]
            return (
                f"{what} cannot be used: {reason}; give this user the right to it, or run in a folder that "
                "may be written to (runs are kept in mlruns/, working files in PRECIS_WORK, Prefect's in "
                "PREFECT_HOME)"
            )
    return ""


@contextlib.contextmanager
def as_errors() -> Iterator[None]:
    """Let what the machine refuses be an error that a user can fix. Raises PrecisError for it.

    A PrecisError that a full disk caused keeps its kind and text, and names the disk too.
    """
    try:
        yield
    except PrecisError as error:
        message = told(error) if any(map(_is_full, _chain(error))) else ""
        if message and FREE_SPACE not in str(error):
            raise type(error)(f"{STATEMENT.sub('', str(error))}\n{message}") from error
        raise
    except Exception as error:
        if message := told(error):
            raise PrecisError(message) from error
        raise


def _is_full(error: BaseException) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    return number in FULL or any(text in str(error).lower() for text in FULL_TEXTS)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        context = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or context


def _full(path: Path | None) -> str:
    """A write carries no path: then the disks that hold our files and have little left are named.

    Where none of them is full, that is told, and none is named as the full one.
    """
    work = os.environ.get("PRECIS_WORK")
    home = os.environ.get("PREFECT_HOME") or Path.home() / ".prefect"
    ours = [Path.cwd(), *([Path(work)] if work else []), Path(tempfile.gettempdir()), Path(home)]
    if output := _redirected_output():
        ours.insert(0, output)
    folders = [_existing(path)] if path else [_existing(one) for one in ours]
    disks = {_disk(folder): folder for folder in reversed(folders)}
    little = {disk: at for disk, at in disks.items() if shutil.disk_usage(at).free < LITTLE_BYTES}
    named = [
        f"{at} (on {disk}, {shutil.disk_usage(at).free / MIB:,.1f} MiB free of "
        f"{shutil.disk_usage(at).total / MIB:,.0f})"
        for disk, at in (little or disks).items()
    ]
    if not (path or little):
        return (
            f"no space is left where it was written, and the disks here have some: {', '.join(named)}. So a "
            "quota, or the disk of a server (MLflow's, its database's, S3's), is full: "
            f"{FREE_SPACE} there, and the same command goes on"
        )
    return (
        f"no space is left on the disk of {' or '.join(named)}: {FREE_SPACE} (precis prune removes old "
        "runs' files), or set PRECIS_WORK, TMPDIR or PREFECT_HOME to a larger disk; what is done is kept, "
        "and the same command goes on from there"
    )


def _redirected_output() -> Path | None:
    """The file that standard output goes to, as in `precis history NAME > file`; Linux alone tells it."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(1).st_mode):
            return Path(os.readlink("/proc/self/fd/1"))
    return None


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _disk(path: Path) -> Path:
    """The mount point of an existing path."""
    while not os.path.ismount(path):
        path = path.parent
    return path
