"""What all tests of a run share: made by the first worker that needs it, under a lock, and copied."""

from __future__ import annotations

import getpass
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of this run, which `make` has filled once for all of pytest-xdist's workers.

    It is the original: tests that write take a copy.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder of its own in it
    return _made(root, name, make)


def _made(root: Path, name: str, make: Callable[[Path], None]) -> Path:
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of this machine, kept for later runs too: its name says all that it depends on."""
    root = Path(tempfile.gettempdir()) / f"precis-tests-{getpass.getuser()}"
    root.mkdir(mode=0o700, exist_ok=True)
    return _made(root, name, make)


def put_prefect_database(home: Path) -> None:
    """An empty database for an embedded Prefect server in `home`; to make one takes 10 s of CPU."""

    def make(folder: Path) -> None:
        name = "provide_database_interface"
        code = f"import asyncio; from prefect.server.database import {name} as database\n"
        code += "asyncio.run(database().create_db())"
        own = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        words = [sys.executable, "-P", "-c", code]
        subprocess.run(words, env=own | {"PREFECT_HOME": str(folder)}, check=True)

    if not (home / "prefect.db").exists():
        made = kept(f"prefect-{metadata.version('prefect')}", make)
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / "prefect.db", home)


def copy_store(source: Path, target: Path) -> None:
    """Copy the embedded MLflow store in source/mlruns, and all that lies there, to target/mlruns.

    The database holds absolute paths of artifacts: they are changed to those of the copy.
    """
    shutil.copytree(source / "mlruns", target / "mlruns", symlinks=True)
    with sqlite3.connect(target / "mlruns/mlflow.db") as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for _, column, kind, *_ in database.execute(f"PRAGMA table_info('{table}')").fetchall():
                if kind.startswith(("VARCHAR", "TEXT")):
                    database.execute(
                        f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?)'
                        f' WHERE instr("{column}", ?)',
                        (str(source), str(target), str(source)),
                    )
    database.close()
