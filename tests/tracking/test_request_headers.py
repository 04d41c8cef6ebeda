"""The MLflow plugin: what is asked of a plain HTTP server asks it to close the connection."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

from tasks.tracking.request_headers import OneConnectionEach


def test_a_plain_server_is_asked_to_close_the_connection(home: Path) -> None:
    """By MLflow's own client, which finds the plugin by its entry point."""
    heads: list[str | None] = []

    class Receiver(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            heads.append(self.headers["Connection"])
            body = json.dumps({"experiment": {"experiment_id": "1", "name": "m"}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(f"http://127.0.0.1:{server.server_port}")
        assert mlflow.MlflowClient().get_experiment("1").name == "m"
    finally:
        mlflow.set_tracking_uri(before)
        server.shutdown()
        server.server_close()
    assert heads
    assert set(heads) == {"close"}


@pytest.mark.parametrize("uri", ["sqlite:///m.db", "https://mlflow.example.com", "databricks"])
def test_others_are_asked_nothing(home: Path, uri: str) -> None:
    """A store without a server, or a server behind TLS, where a new connection is dear."""
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(uri)
        assert not OneConnectionEach().in_context()
    finally:
        mlflow.set_tracking_uri(before)
