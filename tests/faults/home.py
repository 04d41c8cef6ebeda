"""The folder of one trial: a copy of the champion store, processes that run in it, and what its files say.

Nothing of precis is asked here: processes are found in /proc, the registry's state in MLflow's database.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tiny_run
import warm
from warm import WarmProcess

PRECIS = Path(sys.executable).with_name("precis")
Process = subprocess.Popen[str] | WarmProcess
GONE_SECONDS = 60.0  # a busy machine; the promise is 30 on a quiet one
RUN_SECONDS = 420.0
DAY = 25 * 3600


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def outcome(self) -> dict[str, Any]:
        """What it wrote as JSON; empty where it wrote none."""
        with contextlib.suppress(ValueError):
            return dict(json.loads(self.out))
        return {}


@dataclass(frozen=True)
class Registry:
    """What MLflow's database says of the model: its versions, those that are finished, and the alias."""

    versions: frozenset[int]
    finished: frozenset[int]
    alias: int | None

    def __str__(self) -> str:
        open_ones = sorted(self.versions - self.finished)
        claims = f", not finished {open_ones}" if open_ones else ""
        return f"alias v{self.alias} of {sorted(self.versions)}{claims}"


@dataclass
class Home:
    """A folder to run in. `env`: variables besides those of every run."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    commands: int = 0

    @property
    def store(self) -> Path:
        return self.folder / "mlruns"

    @property
    def database(self) -> Path:
        """MLflow's."""
        return self.store / "mlflow.db"

    @property
    def uri(self) -> str:
        """Where MLflow is for the checker."""
        return f"sqlite:///{self.database}"

    def environment(self) -> dict[str, str]:
        return tiny_run.environment(self.folder) | self.env

    def start(self, argv: list[str], real: bool = False) -> tuple[Process, Path]:
        """`precis ARGV` in the background, and the file that its standard error goes to."""
        self.commands += 1
        log = self.folder / f"{self.commands}.{argv[0]}.log"
        if not real:
            started = warm.warm_precis().start(argv, self.folder, self.environment(), log=log)
            return started, log
        out = log.with_suffix(".out").open("w")
        process = subprocess.Popen(
            [str(PRECIS), *argv],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log.open("a"),
            text=True,
        )
        return process, log

    def wait(self, process: Process, log: Path, seconds: float = RUN_SECONDS) -> Ended:
        """The command's end. One that does not end is killed, and its code is 124."""
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        late = process.poll() is None
        if late:
            os.kill(process.pid, signal.SIGKILL)
            while process.poll() is None:
                time.sleep(0.05)
        if isinstance(process, WarmProcess):
            out = process.communicate()[0]
        else:
            out = log.with_suffix(".out").read_text()
        assert process.returncode is not None
        return Ended(124 if late else process.returncode, out, log.read_text(errors="replace"))

    def run(self, argv: list[str], real: bool = False) -> Ended:
        """`precis ARGV` to its end."""
        return self.wait(*self.start(argv, real))

    def registry(self) -> Registry:
        """The state now. Raises sqlite3.OperationalError while a writer holds the database."""
        uri = f"file:{self.database}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0)) as database:
            return registry_from(lambda query: database.execute(query).fetchall())

    def settled(self) -> Registry:
        """The same, waiting for a writer."""
        for _ in range(400):
            with contextlib.suppress(sqlite3.OperationalError):
                return self.registry()
            time.sleep(0.05)
        raise AssertionError("MLflow's database stays locked")

    def processes(self) -> list[psutil.Process]:
        """Every live process that works in this folder, or was started for it."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        own = str(self.folder)
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                return False
            if process.cwd().startswith(own) or any(own in word for word in process.cmdline()):
                return True
            return process.environ().get("PREFECT_HOME", "").startswith(own)
        except psutil.Error:
            return False

    def gone(self) -> list[str]:
        """Waits until no process of the folder is left; those that are after GONE_SECONDS."""
        end = time.monotonic() + GONE_SECONDS
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.2)
        found = []
        for process in left:
            with contextlib.suppress(psutil.Error):
                found.append(" ".join(process.cmdline())[:150] or process.name())
                process.kill()
        return found

    def age(self) -> None:
        """What was left behind is a day old from here on: logged models and all scratch folders."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=20)) as database:
            database.execute(
                "UPDATE logged_models SET creation_timestamp_ms = creation_timestamp_ms - ?",
                (DAY * 1000,),
            )
            database.commit()
        old = time.time() - DAY
        work = self.store / "work"
        for path in (*temporary(), *work.glob("*"), *(work / "served").glob("*")):
            os.utime(path, (old, old))


def registry_from(ask: Callable[[str], list[Any]]) -> Registry:
    """The state that a database of MLflow tells; `ask` answers a query with all of its rows."""
    of_model = f"WHERE name = '{tiny_run.NAME}'"
    versions = ask(f"SELECT version FROM model_versions {of_model}")
    finished = ask(f"SELECT version FROM model_version_tags {of_model} AND key = 'precis.finished'")
    alias = ask(f"SELECT version FROM registered_model_aliases {of_model} AND alias = 'champion'")
    return Registry(
        frozenset(int(row[0]) for row in versions),
        frozenset(int(row[0]) for row in finished),
        int(alias[0][0]) if alias else None,
    )


def temporary() -> list[Path]:
    """The precis folders in the temporary directory, where that is the trial's own (trials.py)."""
    own = os.environ.get("PRECIS_TRIALS_TEMPORARY")
    return sorted(Path(own).glob("precis-*")) if own else []


@contextlib.contextmanager
def copied(store: Path, folder: Path) -> Iterator[Home]:
    """A Home on a copy of the champion store; removed afterwards, with every process that is left."""
    shutil.rmtree(folder, ignore_errors=True)
    tiny_run.put_copy(store, folder)
    home = Home(folder)
    try:
        yield home
    finally:
        for process in home.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)
