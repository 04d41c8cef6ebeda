"""Registered versions of a tiny model for tests of `precis serve`, with engines in this process.

Over 250 lines: the store and what serves from it go together.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import once
import pytest
import tiny
import uvicorn

from flows.serve.engine.__main__ import with_transformers
from flows.serve.engine.app import engine_app
from flows.serve.engines import Engine, Target, client_of
from flows.serve.follow import Follower
from flows.serve.plan import ServePlan
from flows.serve.registry_view import RegistryView
from flows.serve.serve import Server, listen, run
from tasks.contracts import digest
from tasks.contracts.records import ROUGE_NAMES, ModelRef, Prediction
from tasks.register import claims, log_model
from tasks.serving.summarizer import Generator, SummarizerSettings
from tasks.tracking import connection
from tasks.tracking.predictions_table import write_table

NAME = "lamps"
SETTINGS = SummarizerSettings("Sum:\n{document}\nUp: ", 96, "tail", 12, 16)
ROWS = tiny.make_rows(12)
LONG = "Anna: " + "the old map " * 200  # is cut
VERSIONS = 3
WRONG_TEXTS = 4  # the version whose stored texts it does not write


def package(folder: Path, base: Path, **changes: Any) -> Path:
    """A package of a base with these settings."""
    return tiny.packaged(base, folder, replace(SETTINGS, **changes))


def documents() -> list[str]:
    """What the versions were judged by: the last is longer than a prompt."""
    return [*(str(row.document) for row in ROWS), LONG]


def register(
    client: Any, folder: Path, number: int, spoil: bool = False, device: str = "cpu"
) -> list[str]:
    """Register a package as version `number`, and champion; returns its texts of `documents()`.

    `device`: cpu or cuda, what writes them.
    """
    model = ModelRef(str(folder), digest.of_folder(folder), "b" * 64)
    texts = [s.text for s in Generator(folder, device).summarize(documents())]
    found = client.get_experiment_by_name(NAME)
    experiment = found.experiment_id if found else client.create_experiment(NAME)
    run_id = client.create_run(experiment).info.run_id
    uri = log_model.log_model(
        client, model, experiment_id=experiment, run_id=run_id, name=NAME,
        scratch=folder.with_name(f"{folder.name}-served"),
    )  # fmt: skip
    scores = dict.fromkeys(ROUGE_NAMES, 0.0)
    stored = [
        Prediction(
            f"row-{i}", f"row-{i}", text, ("r",), f"{was}!" if spoil else was, True, 1, 1, 0, scores
        )
        for i, (text, was) in enumerate(zip(documents(), texts, strict=True))
    ]
    gate = folder.with_name(f"{folder.name}-gate")
    gate.mkdir()
    log_gate(client, run_id, gate, stored)
    tags = {claims.DIGEST: model.digest, claims.RUN_ID: run_id}
    judged = next((v for v in claims.versions(client, NAME) if v.number == number - 1), None)
    assert claims.succeed(client, NAME, judged, source=uri, tags=tags, description="made by a test")
    return texts


def log_gate(
    client: Any, run_id: str, gate: Path, rows: list[Prediction], to: str = "sealed/gate"
) -> None:
    """Log what the gate stores of its challenger's rows, from the empty folder `gate`."""
    write_table(gate / "challenger.json", rows)
    scores = {"challenger": {"table_digest": digest.of_file(gate / "challenger.json")}}
    (gate / "gate_inputs.json").write_text(json.dumps({"scores": scores}))
    client.log_artifacts(run_id, str(gate), to)


def make(folder: Path) -> None:
    """Register v1 to v4 in an embedded store in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns/mlflow.db")
        patch.chdir(folder)
        client = connection.connect()
        for number in range(1, WRONG_TEXTS + 1):
            texts = register_tiny(client, folder / "mlruns/made", number)
            (folder / f"texts-{number}.txt").write_text("\x00".join(texts))


def register_tiny(
    client: Any, work: Path, number: int, hidden: int = 128, layers: int = 2, device: str = "cpu"
) -> list[str]:
    """Make and register version `number` in the folder `work`; its texts of `documents()`."""
    # Heads of 32: vLLM has no kernel for 16 on a CPU.
    base = tiny.make_tiny_base(work / f"base-{number}", hidden=hidden, layers=layers, seed=number)
    made = package(work / f"package-{number}", base)
    return register(client, made, number, spoil=number == WRONG_TEXTS, device=device)


@contextlib.contextmanager
def store(factory: pytest.TempPathFactory, home: Path) -> Iterator[Any]:
    """A client of a store in `home` with v1 to v3, and v4, which is spoiled; v1 is champion."""
    made = once.made_once(factory, "served-models", make)
    once.copy_store(made, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        client = connection.connect()
        promote(client, 1)
        yield client


def texts_of(factory: pytest.TempPathFactory, number: int) -> list[str]:
    """The stored texts of `documents()` by a version."""
    return texts_in(once.made_once(factory, "served-models", make), number)


def texts_in(folder: Path, number: int) -> list[str]:
    """The same, of a store that was made there."""
    return (folder / f"texts-{number}.txt").read_text().split("\x00")


def promote(client: Any, number: int) -> None:
    """Move the alias, as a promotion or a rollback does in the end."""
    client.set_registered_model_alias(NAME, claims.ALIAS, str(number))


def package_in_store(client: Any, number: int) -> Path:
    """The folder of a version's package in the store."""
    model_id = client.get_model_version(NAME, str(number)).source.removeprefix("models:/")
    location = client.get_logged_model(model_id).artifact_location
    return Path(location.removeprefix("file://")) / "artifacts/package"


class ThreadStarter:
    """Engines as threads of this process: the real app on a real socket, without seconds of imports."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, list[Any]()
        self.sockets = 0

    async def __call__(self, target: Target, folder: Path) -> Engine:
        """As EngineStarter."""
        service = await asyncio.to_thread(with_transformers, folder)
        self.sockets += 1
        socket = self.folder / f"{self.sockets}.sock"
        server = Server(
            uvicorn.Config(
                engine_app(service),
                uds=str(socket),
                log_config=None,
                log_level="error",
                lifespan="off",
            )
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            await asyncio.sleep(0.01)

        def end() -> None:
            server.force_exit = server.should_exit = True
            thread.join(20)

        engine = Engine(target, client_of(socket), lambda: not thread.is_alive(), end)
        engine.info = service.info()
        self.started.append(engine)
        return engine


class Served:
    """A server in a thread of this process; `told`: its events."""

    def __init__(self, plan: ServePlan, packages: Path, start: Any) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.noticed: list[Target | None] = []
        self.follower: Follower
        packages.mkdir(parents=True, exist_ok=True)
        listener = listen(plan.host, 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        view = RegistryView(plan.reference, packages)
        self._work = functools.partial(run, plan, listener, view, start, self._control)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None
        self.thread.start()

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def _control(self, server: Any, follower: Follower) -> None:
        self.server, self.follower = server, follower
        self.follower.tell = lambda event, payload: self.told.append((event, payload))
        self.follower.notice = lambda: self.noticed.append(self.follower.noticed)

    def wait(self, holds: Callable[[dict[str, Any]], bool], seconds: float = 300) -> dict[str, Any]:
        """/health, once `holds` of it is true."""
        until, found = time.monotonic() + seconds, {}
        while time.monotonic() < until:
            assert self.thread.is_alive(), self.error
            with contextlib.suppress(httpx.HTTPError):
                found = httpx.get(f"{self.url}/health", timeout=10).json()
                if holds(found):
                    return found
            time.sleep(0.2)
        raise AssertionError(f"it did not come about: {found}")

    def stop(self) -> None:
        """As TERM does."""
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def served(home: Path, sockets: Path, **options: Any) -> Iterator[Served]:
    """`precis serve` in this process while the block runs, ready."""
    plan = ServePlan(**{"reference": NAME, "poll_seconds": 0.2} | options)
    server = Served(plan, home / "packages", ThreadStarter(sockets))
    try:
        server.wait(lambda health: health["status"] == "ready")
        yield server
    finally:
        server.stop()


def text_of(answer: httpx.Response) -> str:
    """The text of a chat's answer, whole or streamed."""
    if answer.headers["content-type"] == "application/json":
        return str(answer.json()["choices"][0]["message"]["content"])
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]", answer.text
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
