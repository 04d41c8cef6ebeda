"""The folder of a trial on PostgreSQL and S3: MLflow's store in the one, its artifacts in the other.

The registry is empty at first: the challenger meets the untuned base. What MLflow's server sends to S3 goes
through a relay that can answer wrongly.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import home
import psutil
import psycopg2
import s3_server
import tiny_run
from s3_relay import S3Relay
from servers import Servers, wait_for
from servers_home import Relay, ServersHome

from flows.stack import postgres, services
from tasks.processes import supervised

BUCKET = "precis"


@dataclass
class S3Home(ServersHome):
    """A ServersHome with PostgreSQL, and S3 behind `s3`."""

    s3: S3Relay = field(kw_only=True)
    postgres: Path = field(kw_only=True)

    def registry(self) -> home.Registry:
        """The same from PostgreSQL. Raises sqlite3.OperationalError, as its parent, while it is away."""
        try:
            address = (services.postgres_uris(self.postgres) or {})["mlflow"]
            with (
                contextlib.closing(
                    psycopg2.connect(address.replace("+psycopg2", ""))
                ) as connection,
                connection.cursor() as cursor,
            ):
                return home.registry_from(lambda query: _all(cursor, query))
        except (KeyError, psycopg2.OperationalError) as error:
            raise sqlite3.OperationalError(str(error)) from error

    def kill_postgres(self) -> None:
        """kill -9 of the server itself; what supervises it ends."""
        data = str(postgres.data_folder(self.postgres)[0])
        [server] = [
            p
            for p in psutil.process_iter(["cmdline"])
            if data in (p.info["cmdline"] or []) and "postgres" in p.info["cmdline"][0]
        ]
        server.kill()
        self.others.pop().wait(60)

    def start_postgres(self) -> None:
        """Start it again, at another socket, and MLflow's server with it."""
        self.others.append(_postgres(self.postgres))
        self.servers.extra["TEST_MLFLOW_STORE"] = (services.postgres_uris(self.postgres) or {})[
            "mlflow"
        ]
        self.servers.kill("mlflow")
        self.servers.start("mlflow")

    def processes(self) -> list[psutil.Process]:
        return [p for p in super().processes() if "rclone" not in p.name()]

    def age(self) -> None:
        """Not here: half logged models are removed by the same code as on the other stacks."""


def _postgres(database: Path) -> Any:
    """PostgreSQL, once it answers."""
    (database / postgres.URIS).unlink(missing_ok=True)
    # Its own user cannot enter the trial's temporary directory.
    env = os.environ | {"TMPDIR": "/tmp"}
    server = supervised.start(services.postgres_server(database), database.with_suffix(".log"), env)
    wait_for(lambda: services.postgres_uris(database), 120, "PostgreSQL does not start")
    return server


def _all(cursor: Any, query: str) -> list[Any]:
    cursor.execute(query)
    return list(cursor.fetchall())


@contextlib.contextmanager
def copied(store: Path, folder: Path) -> Iterator[S3Home]:
    """An S3Home with the inputs of the champion store; all is removed afterwards."""
    client = tiny_run.put_client(store, folder)
    (folder / "s3" / BUCKET).mkdir(parents=True)
    database = folder / "postgres"
    database.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(shutil.rmtree, postgres.data_folder(database)[0], ignore_errors=True)
        endpoint = stack.enter_context(s3_server.running(folder / "s3"))
        s3 = S3Relay(int(endpoint.rpartition(":")[2]))
        stack.callback(s3.close)
        others = [_postgres(database)]
        stack.callback(lambda: [supervised.stop(other) for other in others])
        extra = s3_server.environment(s3.url) | {
            "TEST_MLFLOW_STORE": (services.postgres_uris(database) or {})["mlflow"],
            "TEST_ARTIFACTS": f"s3://{BUCKET}/artifacts",
        }
        servers = Servers(folder, extra)
        stack.callback(servers.close)
        servers.start("prefect", "mlflow")
        relay = Relay(servers.ports["mlflow"])
        stack.callback(relay.refuse)
        env = servers.client.env | {"MLFLOW_TRACKING_URI": relay.url}
        place = S3Home(
            client, env, servers=servers, relay=relay, others=others, s3=s3, postgres=database
        )
        stack.callback(_end, place)
        yield place


def _end(place: S3Home) -> None:
    for process in place.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()
