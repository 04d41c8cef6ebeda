"""A temporary Prefect server for one run, if none is configured; it ends with the run, even by kill -9.

The one that Prefect itself would start is left behind when the run is killed with -9.
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
from tasks.processes.file_lock import hold_lock

EMBEDDED = "PRECIS_EMBEDDED"  # set while the server is the embedded one, which has no UI to link to
STARTUP_SECONDS = 120.0  # a few on an idle machine; a busy one is slow
POLL_SECONDS = 0.05


class _StillStarting(PrecisError):
    """Other runs are still starting their servers."""


@contextlib.contextmanager
def server() -> Iterator[Callable[[], None]]:
    """A Prefect API while the block runs: the configured one, or an embedded server.

    Yields a function that waits until it answers, so that imports can run while it starts.
    """
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        with contextlib.ExitStack() as stack:
            yield lambda: _check_reachable(stack)
        return
    with contextlib.ExitStack() as starting:
        starting.enter_context(sole_start())
        port = free_port()
        url = f"http://127.0.0.1:{port}/api"
        log = workspace.work_folder() / "prefect-server.log"
        process = supervised.start(_command(port), log, _environment())
        _set_api_url(url)

        def wait_until_ready() -> None:
            _wait_for_answer(url, process)
            starting.close()

        try:
            yield wait_until_ready
        finally:
            # here: imports run while the server starts
            from tasks.orchestration.progress import flush

            flush()
            supervised.stop(process)
            _set_api_url(None)


@contextlib.contextmanager
def sole_start() -> Iterator[None]:
    """Let other starts of ours wait until the server of this block answers.

    Two servers that start at once on a new database both make its tables, and one of them fails. There is
    no wait if this version of Prefect has answered on this database before, nor if its folder cannot be
    locked; and never a wait of more than STARTUP_SECONDS.
    """
    import prefect
    from prefect.settings import get_current_settings

    home = get_current_settings().home
    database = home / "prefect.db"
    # By its inode: a database that replaces a deleted one is new again.
    marker = home / f"precis-started-{prefect.__version__}"
    if marker.exists() and database.exists() and marker.read_text() == _inode(database):
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(_StillStarting, OSError):
            home.mkdir(parents=True, exist_ok=True)
            stack.enter_context(
                hold_lock(home / "precis-start.lock", STARTUP_SECONDS, _StillStarting())
            )
        yield
        with contextlib.suppress(OSError):  # also if the database is not that file: a PostgreSQL
            marker.write_text(_inode(database))


def _inode(path: Path) -> str:
    return str(path.stat().st_ino)


def is_embedded() -> bool:
    """Whether the Prefect server is the embedded one of this run."""
    return EMBEDDED in os.environ


def _check_reachable(stack: contextlib.ExitStack) -> None:
    """Raise ServerError, with how to fix it, if the configured server does not answer or refuses us.

    The client is reused until `stack` ends.
    """
    from prefect.context import SyncClientContext

    from flows.notify import answering

    with answering("no flow can run"):
        client = stack.enter_context(SyncClientContext.get_or_create()).client
        client.read_flows(limit=1)


def _wait_for_answer(url: str, process: subprocess.Popen[bytes]) -> None:
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
                "fix that, or set PREFECT_API_URL to a server of your own"
            ) from None


def _command(port: int) -> list[str]:
    app = "prefect.server.api.server:create_app"
    options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    # By default uvicorn puts the working folder first on the path, where a user's own tasks.py may be.
    options += ["--app-dir", sysconfig.get_path("purelib")]
    return [*supervised.PYTHON_MODULE, "uvicorn", "--factory", app, *options]


def _environment() -> dict[str, str]:
    settings = {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }
    return os.environ | settings


def _set_api_url(url: str | None) -> None:
    """Set PREFECT_API_URL in this process; Prefect has read its settings when it was imported."""
    from prefect.context import refresh_global_settings_context

    if url:
        os.environ |= {"PREFECT_API_URL": url, EMBEDDED: "1"}
    else:
        for name in ("PREFECT_API_URL", EMBEDDED):
            os.environ.pop(name, None)
    refresh_global_settings_context()


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
