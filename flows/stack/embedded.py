"""A Prefect server for one run, where none is configured; it ends with the run, however that ends.

Prefect would start one by itself, but leave it behind when the run is killed with -9.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.contracts.errors import PrecisError
from tasks.processes import supervised, workspace
from tasks.processes.file_lock import held

MARK = "PRECIS_EMBEDDED"  # set while the server is this run's own, which has no UI to link to
STARTUP_SECONDS = 120.0  # seconds on an idle machine; a busy one is slow
POLL_SECONDS = 0.05


class _Busy(PrecisError):
    """Others are still starting their servers."""


@contextlib.contextmanager
def server() -> Iterator[Callable[[], None]]:
    """Have a Prefect API: the configured one, or one that lives as long as this block.

    Yields a function that waits until it answers: imports may go on while it starts.
    """
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        with contextlib.ExitStack() as stack:
            yield lambda: _knock(stack)
        return
    with contextlib.ExitStack() as starting:
        starting.enter_context(sole_start())
        port = free_port()
        url = f"http://127.0.0.1:{port}/api"
        log = workspace.work_folder() / "prefect-server.log"
        process = supervised.start(_words(port), log, _env())
        _use(url)

        def wait() -> None:
            _wait(url, process)
            starting.close()

        try:
            yield wait
        finally:
            from tasks.orchestration.progress import (
                send_the_rest,  # late: imports go on while the server starts
            )

            send_the_rest()
            supervised.stop(process)
            _use(None)


@contextlib.contextmanager
def sole_start() -> Iterator[None]:
    """Keep other starts of ours waiting until the server of this block answers.

    Two at once on one new database both make its tables, and one of them fails. Where this version of
    Prefect has answered on this very file, nobody waits; nor for ever, nor where its folder takes no lock.
    """
    import prefect
    from prefect.settings import get_current_settings

    home = get_current_settings().home
    database = home / "prefect.db"
    # By its inode: after somebody has deleted the database, the next one is new again.
    made = home / f"precis-started-{prefect.__version__}"
    if made.exists() and database.exists() and made.read_text() == _inode(database):
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(_Busy, OSError):
            home.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(home / "precis-start.lock", STARTUP_SECONDS, _Busy()))
        yield
        with contextlib.suppress(OSError):  # also where the database is another: a PostgreSQL
            made.write_text(_inode(database))


def _inode(path: Path) -> str:
    return str(path.stat().st_ino)


def is_embedded() -> bool:
    """Whether the Prefect server is this run's own."""
    return MARK in os.environ


def _knock(stack: contextlib.ExitStack) -> None:
    """Raise ServerError, with the mend, if the configured server does not let us in.

    The client stays in use until `stack` ends: a new one takes 40 ms, nearly all of it for TLS.
    """
    from prefect.context import SyncClientContext

    from flows.notify import answering

    with answering("no flow can run"):
        client = stack.enter_context(SyncClientContext.get_or_create()).client
        client.read_flows(limit=1)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for the API to answer. Raises PrecisError when the server ends or takes too long."""
    end = time.monotonic() + STARTUP_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is None and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
                continue
            log = workspace.work_folder() / "prefect-server.log"
            tail = log.read_text(errors="replace")[-1500:]
            raise PrecisError(
                f"the embedded Prefect server did not start; {log} ends:\n{tail}\n"
                "mend that, or set PREFECT_API_URL to a server of your own"
            ) from None


def _words(port: int) -> list[str]:
    app = "prefect.server.api.server:create_app"
    where = ["--host", "127.0.0.1", "--port", str(port)]
    # By default uvicorn puts the working folder first on the path, where a user's own tasks.py may be.
    where += ["--app-dir", sysconfig.get_path("purelib")]
    return [*supervised.PYTHON_MODULE, "uvicorn", "--factory", app, *where, "--log-level", "error"]


def _env() -> dict[str, str]:
    own = {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }
    return os.environ | own


def _use(url: str | None) -> None:
    """Point this process at the server; Prefect read its settings when it was imported."""
    from prefect.context import refresh_global_settings_context

    if url:
        os.environ |= {"PREFECT_API_URL": url, MARK: "1"}
    else:
        for name in ("PREFECT_API_URL", MARK):
            os.environ.pop(name, None)
    refresh_global_settings_context()


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
