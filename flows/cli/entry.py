"""The `precis` command: `flows.cli.parser.main`, and a quick end of its process."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Sequence


def console(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status, with which the process then ends.

    Once all else that waits for the end was called (Prefect sends its last logs and events then), it
    ends without taking a million objects apart, which takes Python 0.2 s.
    """
    ended: list[int] = []

    def end() -> None:
        if ended:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended[0])

    atexit.register(end)  # before any other, and so called after them
    from flows.cli.parser import main

    ended.append(main(argv))
    return ended[0]


if __name__ == "__main__":
    sys.exit(console())
