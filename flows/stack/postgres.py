"""PostgreSQL for `precis up --postgres`: `python -P -m flows.stack.postgres FOLDER`.

It runs the installed PostgreSQL on a database folder of this stack. (Those that come with pip lack the
extension pg_trgm, which Prefect needs.) It listens on a Unix socket only; FOLDER/uris.json holds the
databases' URIs once both exist.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tasks.contracts import digest
from tasks.contracts.errors import PrecisError
from tasks.processes import workspace

DATABASES = {"prefect": "asyncpg", "mlflow": "psycopg2"}  # name and SQLAlchemy driver
URIS = "uris.json"
INSTALL_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
)
# PostgreSQL refuses to run as root. If we are root, it runs as the user that its package makes, with its
# data in that user's home, since it could not read a folder of root's.
USER, USER_HOME = "postgres", Path("/var/lib/postgresql")


def programs() -> Path:
    """The folder of PostgreSQL's programs, of the newest version. Raises PrecisError if there is none."""
    folders = [path for glob in INSTALL_FOLDERS for path in Path("/").glob(glob.lstrip("/"))]
    if on_path := shutil.which("postgres"):
        folders.append(Path(on_path).resolve().parent)
    usable = [path for path in folders if all((path / p).exists() for p in ("postgres", "initdb"))]
    if not usable:
        raise PrecisError(
            f"PostgreSQL is not installed (looked on PATH and in {', '.join(INSTALL_FOLDERS)}): "
            "apt-get install postgresql, or brew install postgresql"
        )
    return max(usable, key=_version)


def main(folder: Path) -> int:
    """Serve until TERM; the data are kept."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    data, user = data_folder(folder)
    with workspace.temporary_folder(
        workspace.SOCKETS
    ) as sockets:  # a socket's path may have 107 bytes
        if user:
            shutil.chown(sockets, user)  # mode 0700: only that user and root
        return _serve(folder, data, user, sockets, ending)


def _serve(
    folder: Path, data: Path, user: str | None, sockets: Path, ending: threading.Event
) -> int:
    try:
        if not (data / "PG_VERSION").exists():
            _call(["initdb", "--auth=trust", "--encoding=utf8", "-U", USER, "-D", str(data)], user)
        command = [str(programs() / "postgres"), "-D", str(data), "-k", str(sockets), "-h", ""]
        server = subprocess.Popen(command, user=user, cwd="/")
        threading.Thread(target=_set_when_ended, args=(server, ending), daemon=True).start()
        _create_databases(sockets, user, ending)
        uris = {
            name: f"postgresql+{driver}://{USER}@/{name}?host={sockets}"
            for name, driver in DATABASES.items()
        }
        partial = folder / f"{URIS}.partial"
        partial.write_text(json.dumps(uris))
        partial.replace(folder / URIS)
        ending.wait()
        server.send_signal(signal.SIGINT)  # "fast": open connections are ended
        return server.wait()
    finally:
        (folder / URIS).unlink(missing_ok=True)


def _set_when_ended(server: subprocess.Popen[bytes], ending: threading.Event) -> None:
    server.wait()
    ending.set()


def data_folder(folder: Path) -> tuple[Path, str | None]:
    """The folder of the data, and the user that the server runs as (None: as this process)."""
    if os.geteuid() != 0:
        return folder / "data", None
    data = USER_HOME / f"precis-{digest.of_value(str(folder))[:16]}"
    data.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(data, USER, USER)
    return data, USER


def _create_databases(sockets: Path, user: str | None, ending: threading.Event) -> None:
    connection = ["-h", str(sockets), "-U", USER]
    while not ending.wait(0.1):
        ready = subprocess.run(
            [programs() / "pg_isready", *connection], capture_output=True, check=False
        )
        if ready.returncode == 0:
            break
    existing = _call(["psql", *connection, "-Atc", "SELECT datname FROM pg_database"], user).split()
    for name in DATABASES:
        if name not in existing:
            _call(["createdb", *connection, name], user)


def _call(command: list[str], user: str | None) -> str:
    done = subprocess.run(
        [str(programs() / command[0]), *command[1:]],
        user=user,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PrecisError(f"`{' '.join(command)}` failed: {done.stderr or done.stdout}")
    return done.stdout


def _version(path: Path) -> tuple[int, ...]:
    output = subprocess.run(
        [path / "postgres", "--version"], capture_output=True, text=True, check=True
    )
    return tuple(int(part) for part in output.stdout.split()[2].split(".") if part.isdigit())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
