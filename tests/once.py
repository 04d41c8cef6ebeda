"""What all tests of a run share: made by the first worker that needs it, under a lock, and copied."""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import pytest
from filelock import FileLock

KEPT_HOURS = 12
NUMERIC_PATH = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")


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
    return _made(_kept_root(), name, make)


def kept_for_hours(name: str, sources: Iterable[Path], make: Callable[[Path], None]) -> Path:
    """A folder of this machine, kept for the runs of the next hours: one for each state of `sources`.

    They are the files and folders of this project that it depends on. Longer it is not kept: what lies there
    for a day is old to what it is for, and each edit makes another.
    """
    root = _kept_root()
    for done in root.glob(f"{name}-*.done"):
        if time.time() - done.stat().st_mtime > KEPT_HOURS * 3600:
            with FileLock(root / f"{done.stem}.lock"):
                done.unlink(missing_ok=True)
                shutil.rmtree(root / done.stem, ignore_errors=True)
    return _made(root, f"{name}-{_state(sources)}", make)


def _kept_root() -> Path:
    root = Path(tempfile.gettempdir()) / f"precis-tests-{getpass.getuser()}"
    root.mkdir(mode=0o700, exist_ok=True)
    return root


def _state(sources: Iterable[Path]) -> str:
    """A digest of these files and folders, of Python, and of what decides how torch computes."""
    variables = {name: os.environ.get(name) for name in NUMERIC_PATH}
    state = hashlib.sha256(f"{sys.version} {variables}".encode())
    for source in sources:
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file() and path.suffix != ".pyc":
                state.update(f"{path.relative_to(source)} {path.stat().st_size}\n".encode())
                state.update(path.read_bytes())
    return state.hexdigest()[:16]


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
    _replace_in_database(target / "mlruns/mlflow.db", str(source), str(target))


def give_store_to_server(source: Path, database: Path, artifacts: Path) -> None:
    """Copy that store to a server that hands out artifacts itself; nothing of it is on its clients' disks."""
    shutil.copy(source / "mlruns/mlflow.db", database)
    shutil.copytree(source / "mlruns/artifacts", artifacts)
    _replace_in_database(database, f"file://{source}/mlruns/artifacts", "mlflow-artifacts:")
    _replace_in_database(database, str(source), "/of/another/machine")  # a merged model's folder


def _replace_in_database(file: Path, old: str, new: str) -> None:
    """Replace a part of every text in it."""
    with sqlite3.connect(file) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for _, column, kind, *_ in database.execute(f"PRAGMA table_info('{table}')").fetchall():
                if kind.startswith(("VARCHAR", "TEXT")):
                    database.execute(
                        f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?)'
                        f' WHERE instr("{column}", ?)',
                        (old, new, old),
                    )
    database.close()
