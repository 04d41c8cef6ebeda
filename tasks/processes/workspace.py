"""Folders of this machine: the embedded store, the scratch space of steps, and temporary folders.

A temporary folder is locked while it is used, so that one left by a kill is told from one in use.
(tempfile.TemporaryDirectory alone cannot tell them apart, and nothing removes it after kill -9.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

EMBEDDED_STORE = Path("mlruns")  # MLflow's database and artifacts where no server is set
SOCKETS = "pg"  # the kind of folder that holds PostgreSQL's sockets
PREFIX = "precis-"  # of our folders in the temporary directory
VERIFY = "verify"  # may hold a whole model: in the work folder
# "adapter": MLflow's own process puts a model together there (tasks/serving/summarizer/adapter.py).
KINDS = ("check", "ingest", "fresh", "newer", "serve", "adapter", VERIFY, SOCKETS)
# As mkdtemp names them: a user's own precis-backup-2026 is none of ours.
_OURS = re.compile(rf"{PREFIX}(?:{'|'.join(KINDS)})-[a-z0-9_]{{8}}")


def work_folder() -> Path:
    """Scratch space of this machine, absolute: PRECIS_WORK, or mlruns/work."""
    return Path(os.environ.get("PRECIS_WORK") or EMBEDDED_STORE / "work").absolute()


@contextlib.contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """A folder `precis-KIND-...` in the temporary directory, for this user alone, while the block runs.

    `kind`: one of KINDS, by which an abandoned one is known; VERIFY is in the work folder.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is none of the kinds of temporary folders: {', '.join(KINDS)}")
    within = work_folder() if kind == VERIFY else None
    if within:
        within.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-", dir=within))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(oldest: float) -> list[Path]:
    """Remove this user's temporary folders of before `oldest` (seconds since 1970) that no process uses.

    Returns what was removed.
    """
    removed = []
    found = [*Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*")]
    found += work_folder().glob(f"{PREFIX}{VERIFY}-*")
    for folder in found:
        with contextlib.suppress(OSError):  # another process removed it
            facts = folder.stat(follow_symlinks=False)
            # As root, PostgreSQL's sockets belong to its own user (flows/stack/postgres.py).
            own = facts.st_uid == os.geteuid() or (
                os.geteuid() == 0 and folder.name.startswith(f"{PREFIX}{SOCKETS}-")
            )
            named = _OURS.fullmatch(folder.name) is not None
            ours = named and own and folder.is_dir() and not folder.is_symlink()
            if not ours or facts.st_mtime >= oldest or _holds_live_server(folder):
                continue
            with _locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
    return removed


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder; raises BlockingIOError where another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)  # and with it the lock


def _holds_live_server(folder: Path) -> bool:
    """Whether PostgreSQL runs on sockets here: started by a version that did not lock its folder."""
    for lock in folder.glob(".s.PGSQL.*.lock"):
        pid = lock.read_text().partition("\n")[0]
        if pid.isdecimal() and Path(f"/proc/{pid}").exists():
            return True
    return False
