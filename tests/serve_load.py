"""The command `precis serve` in a process of its own, and many clients' requests while the champion changes.

Shared by tests/serve/test_serve_processes.py and tests/bench/serve_changes.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import served_models
from served_models import NAME, SETTINGS, documents, promote

PRECIS = (sys.executable, "-P", "-m", "flows.cli.entry")
KINDS = ("chat", "completion", "summarize", "stream")
CORRUPTED = 3  # the version whose weights are changed in the store before it is promoted


class Command:
    """The command, and the processes that it has started."""

    def __init__(self, home: Path, *options: str, **env: str) -> None:
        self.log = home / "serve.log"
        words = ["serve", NAME, "--port", "0", "--poll-seconds", "0.5", *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*PRECIS, *words], cwd=home, stdout=log, stderr=log, env=os.environ | env
            )
        self.url = ""
        self.family: list[psutil.Process] = []

    def wait(self, holds: Any, seconds: float = 600) -> dict[str, Any]:
        """/health, once `holds` of it is true."""
        until = time.monotonic() + seconds
        found: dict[str, Any] = {}
        while time.monotonic() < until:
            text = self.log.read_text()
            assert self.process.poll() is None, text
            self.url = text.partition(" on ")[2].partition(": starting")[0]
            with contextlib.suppress(httpx.HTTPError):
                found = httpx.get(f"{self.url}/health", timeout=30).json()
                if holds(found):
                    self.family = psutil.Process(self.process.pid).children(recursive=True)
                    return found
            time.sleep(0.2)
        raise AssertionError(f"it did not come about: {found}\n{self.log.read_text()}")

    def left(self, seconds: float = 30) -> list[psutil.Process]:
        """What is left of its processes after that time, or none as soon as there is none."""
        _, left = psutil.wait_procs(self.family, timeout=seconds)
        return left


@contextlib.contextmanager
def serving(home: Path, *options: str, **env: str) -> Iterator[Command]:
    """The command while the block runs, ready."""
    command = Command(home, *options, **env)
    try:
        command.wait(lambda health: health["status"] == "ready")
        yield command
    finally:
        command.process.kill()
        command.process.wait()
        command.left()


@dataclass
class Load:
    """Requests of a random kind for random documents, from `clients` at once, until it is stopped."""

    url: str
    stored: dict[int, list[str]]  # by version
    clients: int
    at_least: int
    done: Counter[tuple[str, int]] = field(
        default_factory=Counter
    )  # what came of it, and the version
    seconds: list[float] = field(default_factory=list)
    may_stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self, number: int) -> None:
        """One client, without a pause. After the last change there must be requests too."""
        rng = random.Random(number)
        with httpx.Client(base_url=self.url, timeout=120) as client:
            while not (self.may_stop.is_set() and len(self.seconds) >= self.at_least):
                began = time.monotonic()
                outcome = self.ask(client, rng)
                with self.lock:
                    self.done[outcome] += 1
                    self.seconds.append(time.monotonic() - began)

    def ask(self, client: httpx.Client, rng: random.Random) -> tuple[str, int]:
        """What came of one request, and the version that answered."""
        index, kind = rng.randrange(len(documents())), rng.choice(KINDS)
        document = documents()[index]
        if kind == "completion" and index < len(documents()) - 1:
            prompt = SETTINGS.template.replace("{document}", document)
            answer = client.post("/v1/completions", json={"prompt": prompt})
            text = answer.json()["choices"][0]["text"] if answer.is_success else ""
        elif kind in ("chat", "stream"):
            body = {"messages": [{"role": "user", "content": document}], "stream": kind == "stream"}
            answer = client.post("/v1/chat/completions", json=body)
            text = served_models.text_of(answer) if answer.is_success else ""
        else:
            answer = client.post("/summarize", json={"document": document})
            text = answer.json()["summaries"][0]["summary"] if answer.is_success else ""
        if answer.status_code != 200:
            return f"failed: {answer.status_code} {answer.text}", 0
        number = int(answer.headers["X-Precis-Version"].rpartition("/")[2])
        return self.outcome(text, number, index, kind), number

    def outcome(self, text: str, number: int, index: int, kind: str) -> str:
        """Whether an answer is the stored text of the version that it names."""
        return "right" if text == self.stored[number][index] else f"mixed: v{number} {kind} {index}"


def run(
    store: Any,
    command: Command,
    load: Load,
    versions: Sequence[int],
    package: Callable[[Any, int], Path] = served_models.package_in_store,
) -> None:
    """Promote these versions one after the other while the load runs; `CORRUPTED` must be refused.

    `package`: where a version's package lies in the store.
    """
    with ThreadPoolExecutor(load.clients) as pool:
        clients = [pool.submit(load.client, number) for number in range(load.clients)]
        try:
            for version in versions:
                if version == CORRUPTED:
                    corrupt(package(store, version) / "model.safetensors")
                promote(store, version)
                command.wait(lambda health, v=version: _is_decided(health, v))
        finally:
            time.sleep(1)
            load.may_stop.set()
        for each in clients:
            each.result()


def _is_decided(health: dict[str, Any], version: int) -> bool:
    refused = [refusal["version"] for refusal in health["refused"]]
    return version in refused if version == CORRUPTED else health["version"] == version


def corrupt(file: Path) -> None:
    """Flip the last bit."""
    content = file.read_bytes()
    file.unlink()  # it may be linked
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
