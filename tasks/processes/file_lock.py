"""A lock on a file: one process at a time; the kernel releases it when the last holder ends.

The library filelock was considered: it does not give the descriptor, which a child must inherit.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.contracts.errors import PrecisError

POLL_SECONDS = 0.1


@contextlib.contextmanager
def hold_lock(path: Path, wait_seconds: float, busy: PrecisError) -> Iterator[int]:
    """Hold the lock on `path`, which need not exist; raises `busy` if others hold it for `wait_seconds`.

    Yields the file's descriptor. A child process that inherits it holds the lock too, so a retry cannot
    start beside a child that outlived its parent (a pid file would not prevent that).
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
