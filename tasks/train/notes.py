"""Notes on training for the user: to this process's log, and to the flow that started it."""

from __future__ import annotations

import logging

from tasks.processes import step_process


def info(text: str) -> None:
    """What training does."""
    logging.getLogger(__name__).info(text)
    step_process.report(kind="note", text=text, failed=False)


def warn(text: str) -> None:
    """What did not work, or works more slowly than it could."""
    logging.getLogger(__name__).warning(text)
    step_process.report(kind="note", text=text, failed=True)
