"""`mlflow models serve` of packages as they are registered: each form of request, by HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from tasks.register import log_model
from tasks.serving.summarizer import Generator, SummarizerSettings

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]
ONE = SummarizerSettings("Sum:\n{document}\nUp: ", 200, "tail", 6, 3, columns=("dialogue",))
SEVERAL = SummarizerSettings(
    "{question}\n{context}\nA: ", 200, "tail", 6, 3, inputs=("question", "context")
)
TEXTS = ["a b c", "d e\r\nf"]
QA = [{"question": "Why?", "context": "So."}, {"question": "How?", "context": "x\r\ny"}]


@contextlib.contextmanager
def served(model: Path, folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["models", "serve", "-m", str(model), "--env-manager", "local", "--port", str(port)]
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "mlflow", *words],
            stdout=log, stderr=log, env=env, start_new_session=True,
        )  # fmt: skip
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, folder / "log.txt")
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError(f"no server: {log.read_text()}")


def asked(url: str, body: Any) -> tuple[int, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())["predictions"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def in_each_form(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    columns = list(rows[0])
    data = [[row[name] for name in columns] for row in rows]
    return [
        {"inputs": rows},
        {"instances": rows},
        {"dataframe_records": rows},
        {"dataframe_split": {"columns": columns, "data": data}},
    ]


def test_a_server_takes_each_form(tmp_path: Path) -> None:
    """Texts and columns of one document, or of several texts by name; what is none answers 400."""
    base = tiny.make_tiny_base(tmp_path / "base")
    for name, settings, documents in (("one", ONE, TEXTS), ("several", SEVERAL, QA)):
        folder = tmp_path / name
        # MLflow copies what it serves, and takes no links.
        linked = tiny.packaged(base, folder / "linked", settings)
        package = shutil.copytree(linked, folder / "package")
        log_model.lay_out(package, folder / "model/logged")
        clean: list[Any] = json.loads(json.dumps(documents).replace("\\r", ""))
        expected = [summary.text for summary in Generator(package, "cpu").summarize(clean)]
        rows: list[dict[str, str]] = QA if settings.inputs else [
            {"id": "1", "dialogue": text} for text in TEXTS
        ]  # fmt: skip
        bodies = in_each_form(rows)
        if not settings.inputs:
            bodies += [{"inputs": TEXTS}, {"instances": TEXTS}]
        with served(folder / "model/logged", folder) as url:
            for body in bodies:
                assert asked(url, body) == (200, expected), body
            for body in (
                {"inputs": [""]},
                {"inputs": [None]},
                *in_each_form([{"id": "1", "a": "x"}]),
            ):
                status, text = asked(url, body)
                assert status == 400, (body, text)
