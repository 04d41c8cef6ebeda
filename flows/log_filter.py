"""No traceback in the log for what a run's state says in a sentence: a user's mistake, a refused rollback.

Prefect raises the error of a failed or cancelled state at the end of its engine's process, and logs it as
"Engine execution exited with unexpected exception", with a traceback.
"""

from __future__ import annotations

import logging

LOGGERS = ("prefect.task_runs", "prefect.flow_runs")


def hide_known_errors() -> None:
    """From here on, leave out log records whose exception is a PrecisError or a cancelled run."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_has_no_known_error)


def _has_no_known_error(record: logging.LogRecord) -> bool:
    if not (isinstance(record.exc_info, tuple) and record.exc_info[1]):
        return True
    from prefect.exceptions import CancelledRun

    from tasks.contracts.errors import PrecisError

    return not isinstance(record.exc_info[1], PrecisError | CancelledRun)
