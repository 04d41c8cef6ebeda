"""One process at a time, by a file: the kernel lets go of it when its last holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.contracts.errors import PrecisError

POLL_SECONDS = 0.1


@contextlib.contextmanager
def held(path: Path, wait_seconds: float, busy: PrecisError) -> Iterator[int]:
    """Be the only holder of `path`, which need not exist: raises `busy` when others still are.

    Yields the file's descriptor: a child process that is given it holds the lock as well, and a
    retry is kept from starting beside a child that outlived its parent (as a pid file could not).
    """
    with open(path, "a+", encoding="utf-8") as lock:
        end = time.monotonic() + wait_seconds
        while not _taken(lock.fileno()):
            if time.monotonic() > end:
                raise busy
            time.sleep(POLL_SECONDS)
        yield lock.fileno()


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
