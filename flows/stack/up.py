"""`precis up`: Prefect server, MLflow server, a worker and all deployments, in one command.

    servers (PostgreSQL and S3 first, with --postgres) -> work pool -> deployments -> worker

All of them are supervised: Ctrl-C, TERM or even kill -9 of this process leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flows.stack import database_versions, embedded, owner, postgres, services
from flows.stack.services import HOST, Service, ServiceError, service
from tasks.processes import supervised, workspace

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"
POOL = "precis"
BUCKET = "precis"
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Plan:
    """The options of `precis up`."""

    prefect_port: int
    mlflow_port: int
    s3_port: int
    postgres: bool
    runs_at_once: int


@dataclass
class Stack:
    """The running stack: its services, and the environment in which programs use it."""

    env: dict[str, str]
    services: list[Service] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """How to use it, for a terminal."""
        prefect = self.env["PREFECT_API_URL"].removesuffix("/api")
        settings = [f"  export {name}={self.env[name]}" for name in SHOWN if name in self.env]
        return [
            f"Prefect   {prefect}   deployments, runs, reports",
            f"MLflow    {self.env['MLFLOW_TRACKING_URI']}   experiments, registry",
            "in another terminal:", *settings,
            "  prefect deployment run retrain/demo",
            "Ctrl-C ends all of it.",
        ]  # fmt: skip


LOGS = Path("stack/logs")
DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOWN = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL")


class _Ended(BaseException):
    """Ctrl-C or TERM."""


def up(plan: Plan, show: Callable[[str], None] = print) -> None:
    """Run the stack until a signal, or until one of its processes ends (ServiceError)."""
    folder = workspace.EMBEDDED_STORE.absolute()
    with owner.own(folder, _prefect_home(plan), f"http://{HOST}:{plan.prefect_port}"):
        _ports_are_free(plan)
        _serve(plan, folder, show)


def _prefect_home(plan: Plan) -> Path | None:
    """Where Prefect's database is; None if it is not a file there."""
    from prefect.settings import get_current_settings

    if plan.postgres or DATABASE in os.environ:
        return None
    return get_current_settings().home.absolute()


def _serve(plan: Plan, folder: Path, show: Callable[[str], None]) -> None:
    for number in SIGNALS:
        signal.signal(number, _end)
    try:
        with contextlib.ExitStack() as running:
            # Last, for what a killed supervising process leaves: it is ours then, on Linux.
            supervised.adopt_orphans()
            running.callback(supervised.end_family)
            try:
                _run(plan, folder, running, show)
            finally:
                _ignore_signals()
    except _Ended:
        show("all of it has ended")


def _run(
    plan: Plan, folder: Path, running: contextlib.ExitStack, show: Callable[[str], None]
) -> None:
    stack = _servers(plan, folder, running, show)
    command, api = services.worker(POOL), stack.env["PREFECT_API_URL"]
    worker = running.enter_context(service("worker", command, folder / LOGS, stack.env))
    stack.services.append(worker)
    worker.wait(lambda: services.answers(f"{api}/work_pools/{POOL}", stack.env))
    services.limit_pool(api, POOL, plan.runs_at_once, stack.env)
    show("deploying")
    _deploy(stack)
    show("\n".join(stack.lines))
    while True:
        for each in stack.services:
            each.check()
        time.sleep(POLL_SECONDS)


def _end(*_: object) -> None:
    _ignore_signals()
    raise _Ended


def _ignore_signals() -> None:
    """A second Ctrl-C or TERM while the processes are being ended must not leave some of them behind."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _servers(
    plan: Plan, folder: Path, running: contextlib.ExitStack, show: Callable[[str], None]
) -> Stack:
    prefect = f"http://{HOST}:{plan.prefect_port}/api"
    mlflow = f"http://{HOST}:{plan.mlflow_port}"
    stack = Stack({
        "PREFECT_API_URL": prefect,
        "MLFLOW_TRACKING_URI": mlflow,
        "PRECIS_HOME": str(Path.cwd()),
    } | services.SETTINGS)  # fmt: skip
    if auth := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        stack.env.setdefault("PREFECT_API_AUTH_STRING", auth)
    store, destination = f"sqlite:///{folder / 'mlflow.db'}", str(folder / "artifacts")
    folder.mkdir(parents=True, exist_ok=True)
    if plan.postgres:
        show("starting PostgreSQL and the S3 server")
        store, destination = _postgres_and_s3(plan, folder / "stack", running, stack)
    home = _prefect_home(plan)
    prefect_database = f"sqlite:///{home / 'prefect.db'}" if home else _database_uri(stack)
    databases = {"prefect": prefect_database, "mlflow": store}
    database_versions.require_known(databases, folder / "stack")
    show("starting the Prefect and MLflow servers")
    # Both at once: each takes seconds.
    commands = {
        "prefect": services.prefect_server(plan.prefect_port),
        "mlflow": services.mlflow_server(plan.mlflow_port, destination),
    }
    env = stack.env | services.mlflow_environment(store)
    with embedded.sole_start():
        for name, command in commands.items():
            stack.services.append(running.enter_context(service(name, command, folder / LOGS, env)))
        prefect_server, mlflow_server = stack.services[-2:]
        prefect_server.wait(lambda: services.answers(f"{prefect}/health"))
    mlflow_server.wait(lambda: services.answers(f"{mlflow}/health"))
    database_versions.record(folder / "stack")
    return stack


def _database_uri(stack: Stack) -> str:
    return stack.env.get(DATABASE) or os.environ[DATABASE]


def _postgres_and_s3(
    plan: Plan, folder: Path, running: contextlib.ExitStack, stack: Stack
) -> tuple[str, str]:
    """Start both; MLflow's store URI and artifact destination on them."""
    (folder / "s3" / BUCKET).mkdir(parents=True, exist_ok=True)
    (folder / "postgres").mkdir(exist_ok=True)
    (folder / "postgres" / postgres.URIS).unlink(missing_ok=True)
    keys = services.s3_keys(folder)
    for name, command in {
        "postgres": services.postgres_server(folder / "postgres"),
        "s3": services.s3_server(folder / "s3", plan.s3_port),
    }.items():
        env = stack.env | services.s3_environment(keys)
        stack.services.append(
            running.enter_context(service(name, command, folder.parent / LOGS, env))
        )
    database, s3 = stack.services
    database.wait(lambda: services.postgres_uris(folder / "postgres") is not None)
    s3.wait(lambda: services.listens(plan.s3_port))
    uris = services.postgres_uris(folder / "postgres")
    assert uris is not None
    endpoint = f"http://{HOST}:{plan.s3_port}"
    stack.env |= {
        DATABASE: uris["prefect"],
        "AWS_ACCESS_KEY_ID": keys[0],
        "AWS_SECRET_ACCESS_KEY": keys[1],
        "AWS_ENDPOINT_URL": endpoint,
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
    }
    return uris["mlflow"], f"s3://{BUCKET}/artifacts"


def _deploy(stack: Stack) -> None:
    command = [
        str(services.BIN / "prefect"),
        "--no-prompt",
        "deploy",
        "--all",
        "--prefect-file",
        str(FILE),
    ]
    done = subprocess.run(
        command,
        cwd=FILE.parents[1],
        env=os.environ | stack.env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServiceError(f"`{' '.join(command[1:])}` failed:\n{done.stdout}\n{done.stderr}")


def _ports_are_free(plan: Plan) -> None:
    ports = {"--port": plan.prefect_port, "--mlflow-port": plan.mlflow_port}
    if plan.postgres:
        ports["--s3-port"] = plan.s3_port
    taken = [f"port {port} is taken; name another with {name}" for name, port in ports.items()
             if services.listens(port)]  # fmt: skip
    if taken:
        raise ServiceError.of(taken)
