"""No traceback in the log for what a run's state says in a sentence: a user's mistake, a full disk, a
refused rollback.

Prefect raises the error of a failed or cancelled state at the end of its engine's process, and logs it as
"Engine execution exited with unexpected exception", with a traceback.
"""

from __future__ import annotations

import logging

LOGGERS = ("prefect.task_runs", "prefect.flow_runs")
# What Prefect's engine logs of a cancelled run: the state that it last knew, after the run has ended.
LAST_KNOWN = "Finished in state Running"
# Logs, with a traceback, the database error that it then raises: of a full disk, one for each write.
RAISED_TOO = "mlflow.store.db.utils"


def hide_known_errors() -> None:
    """From here on, leave out log records whose exception is a PrecisError, a cancelled run, or
    a full disk and the like, and a cancelled run's line that it finished in state Running."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_has_no_known_error)
        logging.getLogger(name).addFilter(_tells_the_last_state)
    logging.getLogger(RAISED_TOO).addFilter(_has_no_exception)


def _tells_the_last_state(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(LAST_KNOWN)


def _has_no_exception(record: logging.LogRecord) -> bool:
    return not record.exc_info


def _has_no_known_error(record: logging.LogRecord) -> bool:
    if not (isinstance(record.exc_info, tuple) and record.exc_info[1]):
        return True
    from prefect.exceptions import CancelledRun

    from tasks.contracts import machine_faults
    from tasks.contracts.errors import PrecisError

    error = record.exc_info[1]
    return not (isinstance(error, PrecisError | CancelledRun) or machine_faults.told(error))
