"""The folder of a trial with real servers: Prefect's and MLflow's on SQLite, which can be killed.

Runs reach MLflow by way of a relay, which can refuse connections for a while.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import home
import once
import psutil
import tiny_run
from servers import Servers

PIECE = 65536


class Relay:
    """Passes connections on to a port of this machine; while `refuse` holds, nothing listens."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._serve()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _serve(self) -> None:
        threading.Thread(target=self._accept, args=(self.listening,), daemon=True).start()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                caller, _ = listening.accept()
            except OSError:  # it was closed
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # the server is away: so is what stands for it
                caller.close()
                continue
            self._open |= {caller, server}
            for ends in ((caller, server), (server, caller)):
                threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self._open.discard(end)

    def refuse(self) -> None:
        """Cut all connections and take no more."""
        with contextlib.suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self.listening.close()
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve_again(self) -> None:
        """Listen at the same port again."""
        self.listening = socket.create_server(("127.0.0.1", self.port))
        self._serve()


@dataclass
class ServersHome(home.Home):
    """A Home whose runs use the servers of `servers`; their processes are none of the run's."""

    servers: Servers = field(kw_only=True)
    relay: Relay = field(kw_only=True)
    others: list[Any] = field(
        default_factory=list, kw_only=True
    )  # processes that are not the run's

    @property
    def database(self) -> Path:
        return self.servers.folder / "mlflow.db"

    @property
    def uri(self) -> str:
        return self.servers.mlflow

    def processes(self) -> list[psutil.Process]:
        own: set[int] = set()
        for piece in (*self.servers.running.values(), *self.others):
            with contextlib.suppress(psutil.Error):
                wrapper = psutil.Process(piece.pid)
                own |= {wrapper.pid, *(p.pid for p in wrapper.children(recursive=True))}
        return [p for p in super().processes() if p.pid not in own]


@contextlib.contextmanager
def copied(store: Path, folder: Path) -> Iterator[ServersHome]:
    """A ServersHome whose MLflow server begins with the champion store; all is removed afterwards."""
    client = tiny_run.put_client(store, folder)
    once.give_store_to_server(store, folder / "mlflow.db", folder / "artifacts")
    servers = Servers(folder)
    try:
        servers.start("prefect", "mlflow")
        relay = Relay(servers.ports["mlflow"])
        env = servers.client.env | {"MLFLOW_TRACKING_URI": relay.url}
        place = ServersHome(client, env, servers=servers, relay=relay)
        try:
            yield place
        finally:
            for process in place.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            relay.refuse()
    finally:
        servers.close()
        shutil.rmtree(folder, ignore_errors=True)
