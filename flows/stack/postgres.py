"""A real PostgreSQL for `precis up --postgres`: `python -P -m flows.stack.postgres FOLDER`.

The installed one's own programs, on a database folder of this stack's. (Those that come with pip
lack the extension pg_trgm, which Prefect needs.) It listens on a Unix socket alone; FOLDER/uris.json
names it once both databases stand.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tasks.contracts import digest
from tasks.contracts.errors import PrecisError

DATABASES = {"prefect": "asyncpg", "mlflow": "psycopg2"}  # name and SQLAlchemy driver
URIS = "uris.json"
PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
)
# PostgreSQL refuses to run as root. Where we are root, it runs as its package's own user, with its
# data in that user's home: it could not reach a folder of ours.
USER, USER_HOME = "postgres", Path("/var/lib/postgresql")


def programs() -> Path:
    """The folder of PostgreSQL's programs, the newest there is. Raises PrecisError without one."""
    places = [path for place in PLACES for path in Path("/").glob(place.lstrip("/"))]
    if found := shutil.which("postgres"):
        places.append(Path(found).resolve().parent)
    there = [path for path in places if (path / "postgres").exists() and (path / "initdb").exists()]
    if not there:
        raise PrecisError(
            f"PostgreSQL is not installed (looked on PATH and in {', '.join(PLACES)}): "
            "apt-get install postgresql, or brew install postgresql"
        )
    return max(there, key=_version)


def main(folder: Path) -> int:
    """Serve until TERM; the data stay."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    data, user = place(folder)
    sockets = Path(tempfile.mkdtemp(prefix="precis-pg-"))  # a socket's path may have 107 bytes
    if user:
        shutil.chown(sockets, user)  # mode 0700: that user and we, nobody else on this machine
    try:
        if not (data / "PG_VERSION").exists():
            _call(["initdb", "--auth=trust", "--encoding=utf8", "-U", USER, "-D", str(data)], user)
        words = [str(programs() / "postgres"), "-D", str(data), "-k", str(sockets), "-h", ""]
        server = subprocess.Popen(words, user=user, cwd="/")
        threading.Thread(target=_when_it_ends, args=(server, ending), daemon=True).start()
        _databases(sockets, user, ending)
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
        shutil.rmtree(sockets, ignore_errors=True)


def _when_it_ends(server: subprocess.Popen[bytes], ending: threading.Event) -> None:
    server.wait()
    ending.set()


def place(folder: Path) -> tuple[Path, str | None]:
    """Where the data lie, and as whom the server runs (None: as we do)."""
    if os.geteuid() != 0:
        return folder / "data", None
    data = USER_HOME / f"precis-{digest.of_value(str(folder))[:16]}"
    data.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(data, USER, USER)
    return data, USER


def _databases(sockets: Path, user: str | None, ending: threading.Event) -> None:
    where = ["-h", str(sockets), "-U", USER]
    while not ending.wait(0.1):
        ready = subprocess.run(
            [programs() / "pg_isready", *where], capture_output=True, check=False
        )
        if ready.returncode == 0:
            break
    known = _call(["psql", *where, "-Atc", "SELECT datname FROM pg_database"], user).split()
    for name in DATABASES:
        if name not in known:
            _call(["createdb", *where, name], user)


def _call(words: list[str], user: str | None) -> str:
    done = subprocess.run(
        [str(programs() / words[0]), *words[1:]],
        user=user,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PrecisError(f"`{' '.join(words)}` failed: {done.stderr or done.stdout}")
    return done.stdout


def _version(path: Path) -> tuple[int, ...]:
    said = subprocess.run(
        [path / "postgres", "--version"], capture_output=True, text=True, check=True
    )
    return tuple(int(part) for part in said.stdout.split()[2].split(".") if part.isdigit())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
