"""`mlflow models serve` of packages as they are registered: each form of request, by HTTP."""

from __future__ import annotations

import contextlib
import csv
import io
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
from dataclasses import replace
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
    """Status and predictions, or the error's text; a str is sent as CSV."""
    is_csv = isinstance(body, str)
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    kind = "text/csv" if is_csv else "application/json"
    request = urllib.request.Request(url, data, {"Content-Type": kind})
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


def as_csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def refused(url: str, body: Any, row: str) -> None:
    """400 that names the row and shows none of the others."""
    status, text = asked(url, body)
    assert (status, row in text) == (400, True), (body, text)
    assert "secret" not in text, (body, text)


@contextlib.contextmanager
def serving(
    base: Path, folder: Path, settings: SummarizerSettings
) -> Iterator[tuple[str, Generator]]:
    """The address of a server, and the generator of the package that it serves."""
    # MLflow copies what it serves, and takes no links.
    linked = tiny.packaged(base, folder / "linked", settings)
    package = shutil.copytree(linked, folder / "package")
    log_model.lay_out(package, folder / "model/logged")
    with served(folder / "model/logged", folder) as url:
        yield url, Generator(package, "cpu")


def texts(generator: Generator, documents: Any) -> list[str]:
    return [summary.text for summary in generator.summarize(documents)]


def test_a_server_takes_each_form(tmp_path: Path) -> None:
    """Texts and columns of one document, or of several texts by name; what is none answers 400."""
    base = tiny.make_tiny_base(tmp_path / "base")
    one = [{"id": "1", "dialogue": text} for text in TEXTS]
    with serving(base, tmp_path / "one", ONE) as (url, generator):
        expected = texts(generator, [text.replace("\r", "") for text in TEXTS])
        lists = [{"inputs": TEXTS}, {"instances": TEXTS}, {"inputs": {"dialogue": TEXTS}}]
        for body in (*in_each_form(one), as_csv(one), *lists):
            assert asked(url, body) == (200, expected), body
        for bad in ("", None, 5, "\ud83d", float("nan"), ["x"], {"a": "x"}):
            refused(url, {"inputs": ["secret", bad]}, "row 2")
        for bad in ("", None, "\ud83d"):
            for body in in_each_form([{"dialogue": "secret"}, {"dialogue": bad}]):  # type: ignore[dict-item]
                refused(url, body, "row 2")
        refused(url, 'dialogue\nsecret\n""\n', "row 2")
        for body in (*in_each_form([{"id": "secret", "txt": "x"}]), as_csv([{"txt": "secret"}])):
            refused(url, body, "there is no column dialogue or document")
        for body in ({"inputs": []}, {"dataframe_records": []}):
            refused(url, body, "no text")
        assert asked(url, {"dataframe_split": {"columns": ["dialogue"], "data": []}}) == (200, [])

        long = "word " * 300
        told = texts(generator, [TEXTS[0], long])
        rows = [{"summary": t, "truncated": t == told[1]} for t in told]
        body = {"inputs": [TEXTS[0], long], "params": {"truncated": True}}
        assert asked(url, body) == (200, rows)
        generator.settings = replace(generator.settings, max_new_tokens=2)
        short = texts(generator, TEXTS[:1])
        assert short[0] != expected[0]
        body = {"inputs": TEXTS[:1], "params": {"max_new_tokens": 2, "temperature": 0}}
        assert asked(url, body) == (200, short)
        for name, value in (("max_new_tokens", 7), ("temperature", 0.7), ("do_sample", True)):
            refused(url, {"inputs": ["secret"], "params": {name: value}}, f"params: {name} is")

    with serving(base, tmp_path / "several", SEVERAL) as (url, generator):
        expected = texts(generator, json.loads(json.dumps(QA).replace("\\r", "")))
        for body in (*in_each_form(QA), as_csv(QA)):
            assert asked(url, body) == (200, expected), body
        for bad in ("", None, "\ud83d"):
            row: Any = {"question": bad, "context": "x"}
            for body in in_each_form([{"question": "secret", "context": "secret"}, row]):
                refused(url, body, "row 2: question is")
        for body in (*in_each_form([{"context": "secret"}]), as_csv([{"context": "secret"}])):
            refused(url, body, "row 1: question is missing")
        refused(url, {"inputs": ["secret"]}, "there is no column question, context")
