"""A full disk is named, whatever met it: the kernel or SQLite; the log tells nothing twice or wrongly."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path

import pytest

from flows import log_filter
from tasks.contracts import machine_faults
from tasks.contracts.errors import PrecisError, RegistryError


def _write_to_full_disk() -> None:
    """/dev/full refuses each write as a full disk does (ENOSPC)."""
    with machine_faults.as_errors(), open("/dev/full", "w") as full:
        full.write("a")
        full.flush()


def test_a_refused_write_is_not_blamed_on_a_disk_with_room(home: Path) -> None:
    """/dev/full is on no disk here, as a server's: what is free here is told, and where to look."""
    with pytest.raises(PrecisError, match=r"the disks here have some: /.* MiB free") as found:
        _write_to_full_disk()
    assert "the disk of a server" in str(found.value)
    assert isinstance(found.value.__cause__, OSError)


def _fill_database(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as database, machine_faults.as_errors():
        database.execute("CREATE TABLE a (b)")
        database.execute("PRAGMA max_page_count = 1")
        try:
            database.execute("INSERT INTO a VALUES (zeroblob(100000))")
        except sqlite3.OperationalError as error:
            shown = "[SQL: INSERT\n...]\n[parameters: (1,)]\n(Background on this error at: ...)"
            raise RegistryError(f"MLflow: {error}\n{shown}\nTraining is done") from error


def test_a_full_database_keeps_the_error_s_kind(home: Path) -> None:
    """The error's kind stays, and what it tells besides; the statement is left out."""
    with pytest.raises(RegistryError) as found:
        _fill_database(home / "mlflow.db")
    expected = (
        "MLflow: database or disk is full\nTraining is done\nno space is left where it was written"
    )
    assert str(found.value).startswith(expected)


def test_the_file_that_could_not_be_written_decides(home: Path) -> None:
    """Of several disks the one is named that the error is about."""
    with pytest.raises(PrecisError, match=f"the disk of {home} "), machine_faults.as_errors():
        raise OSError(28, "No space left on device", str(home / "a/b/c"))


def test_other_errors_pass_as_they_are(home: Path) -> None:
    with pytest.raises(FileNotFoundError), machine_faults.as_errors():
        (home / "absent").read_text()


def test_mlflow_does_not_show_a_traceback_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its store logs each database error that it then raises; a remark without one stays."""
    from mlflow.store.db import utils

    for name in (*log_filter.LOGGERS, log_filter.RAISED_TOO):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    utils._logger.addHandler(caplog.handler)  # MLflow's do not reach the root logger
    log_filter.hide_known_errors()
    try:
        raise sqlite3.OperationalError("database or disk is full")
    except sqlite3.OperationalError:
        utils._logger.exception("with its traceback")
    utils._logger.warning("without one")
    utils._logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"without one"}


def test_a_cancelled_run_is_not_told_to_be_running(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect's engine logs the state that it last knew; the line of any other state stays."""
    for name in (*log_filter.LOGGERS, log_filter.RAISED_TOO):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    log_filter.hide_known_errors()
    logger = logging.getLogger("prefect.flow_runs")
    logger.addHandler(caplog.handler)
    logger.error("Finished in state Running()")
    logger.error("Finished in state Cancelled()")
    logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"Finished in state Cancelled()"}
