"""`precis serve` where something fails beside the model: descriptors, the package's code, MLflow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import served_models
import tiny

from flows.serve.engine.__main__ import with_transformers
from flows.serve.engine.app import engine_app
from flows.serve.engines import Engine, EngineBusy, EngineGone, Target, client_of
from flows.serve.plan import ServePlan
from flows.serve.proxy import Proxy
from flows.serve.registry_view import RegistryView
from flows.serve.serve import requests_at_once
from flows.serve.state import ServingState
from tasks.contracts import digest

pytestmark = pytest.mark.usefixtures("one_thread")
TARGET = Target("models:/m-1", "d" * 64, "lamps v1", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that reads long documents in parts."""
    base = tiny.make_tiny_base(tmp_path_factory.mktemp("base"))
    settings = replace(served_models.SETTINGS, summarize="map_reduce")
    return tiny.packaged(base, tmp_path_factory.mktemp("package") / "package", settings)


class Waiting:
    """A writer that writes nothing, as long as it is not ended."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.fault: Exception | None = None

    async def write(
        self, prompt: list[int], limit: int, in_pieces: bool
    ) -> AsyncGenerator[list[int]]:
        self.begun += 1
        if self.fault:
            raise self.fault
        try:
            await asyncio.sleep(60)
            yield []
        finally:
            self.ended += 1


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def asking(service: Any, **options: Any) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of a server whose engine is this service, all of it in this event loop."""
    transport = httpx.ASGITransport(engine_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as inner:
        engine = Engine(TARGET, inner, lambda: False, lambda: None, service.info())
        state = ServingState()
        state.put(engine)
        app = Proxy(ServePlan("lamps", **options), state, lambda: None).app()
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://proxy", timeout=30
        ) as client:
            yield client


def test_a_failure_of_the_package_is_told_once(folder: Path) -> None:
    """500 with its words, and the engine is not taken for gone; so is what a writer cannot write."""
    service = with_transformers(folder)
    service.writer = Waiting()
    intact, calls = service.package.documents_of, []

    def broken(*_: Any) -> Any:
        calls.append(1)
        raise KeyError("no such role")

    async def run() -> None:
        async with asking(service) as client:
            service.package.documents_of = broken
            answer = await client.post("/summarize", json={"document": "a"})
            assert (answer.status_code, len(calls)) == (500, 1)
            assert "KeyError: 'no such role'" in answer.json()["error"]["message"]
            service.package.documents_of = intact
            service.writer.fault = RuntimeError("out of memory")
            answer = await client.post("/summarize", json={"document": "a"})
            assert answer.status_code == 500
            assert "out of memory" in answer.json()["error"]["message"]
            assert (await client.get("/health")).json()["status"] == "ready"

    asyncio.run(run())


def test_more_requests_than_there_is_room_for_are_told_to_come_again(folder: Path) -> None:
    """Those that an engine answers; health is told all the same, and that no text was compared."""
    service = with_transformers(folder)
    service.writer = writer = Waiting()

    async def run() -> None:
        async with asking(service, max_requests=1, check_rows=0) as client:
            first = asyncio.create_task(client.post("/summarize", json={"document": "a"}))
            await until(lambda: writer.begun == 1)
            answer = await client.post("/summarize", json={"document": "a"})
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
            assert "at once" in answer.json()["error"]["message"]
            assert (await client.get("/health")).json()["rows_unchecked"] == "--check-rows 0"
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    asyncio.run(run())


def test_parts_are_not_summarized_for_a_client_that_has_gone(folder: Path) -> None:
    service = with_transformers(folder)
    service.writer = writer = Waiting()
    asked = {"kind": "documents", "items": [served_models.LONG]}
    scope = {"type": "http", "method": "POST", "path": "/write", "headers": [], "query_string": b""}
    messages = [{"type": "http.request", "body": json.dumps(asked).encode()}]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await until(lambda: writer.begun > 1)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        await engine_app(service)(scope, receive, send)
        await until(lambda: writer.ended == writer.begun)

    asyncio.run(run())
    assert sent[0]["status"] == 499


def test_an_engine_is_gone_only_where_nothing_listens(tmp_path: Path) -> None:
    """Not where this process has no descriptor left."""

    async def ask(engine: Engine) -> None:
        async with contextlib.aclosing(engine.write({})) as lines:
            await anext(lines)

    async def run() -> None:
        client = client_of(tmp_path / "no.sock")
        engine = Engine(TARGET, client, lambda: False, lambda: None)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        held: list[int] = []
        with pytest.raises(EngineGone):  # what httpx imports late is imported
            await ask(Engine(TARGET, client, lambda: False, lambda: None))
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.dup(0))
            with pytest.raises(EngineBusy):
                await ask(engine)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for descriptor in held:
                os.close(descriptor)
        assert not engine.has_ended()
        with pytest.raises(EngineGone):
            await ask(engine)
        assert engine.has_ended()
        await client.aclose()

    asyncio.run(run())


def test_as_many_descriptors_as_allowed_may_be_open() -> None:
    soft, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        assert requests_at_once() >= (hard - 200) // 2
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_was_pulled_stays_while_mlflow_is_away(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as registered: neither MLflow nor the store is asked."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    target = replace(TARGET, digest=digest.of_folder(folder))
    kept = tmp_path / target.digest[:32]
    kept.symlink_to(folder)
    assert RegistryView("lamps", tmp_path).package(target) == kept
