"""`precis serve` follows the alias: takes over, refuses, restarts, and answers all the while.

Over 250 lines: all that may happen to a followed alias is in one place.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import served_models
from served_models import NAME, WRONG_TEXTS, Served, documents, promote

from flows.serve.follow import CHANGED, REFUSED
from flows.serve.plan import ServePlan
from tasks.contracts.errors import RegistryError
from tasks.register import claims

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Iterator[Any]:
    """A client of a store with v1 to v3 and v4, which is spoiled; v1 is champion."""
    with served_models.store(tmp_path_factory, tmp_path) as client:
        yield client


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def ask(server: Served, index: int = 0) -> tuple[int, str]:
    """Which version answered, and its text."""
    body = {"document": documents()[index]}
    answer = httpx.post(f"{server.url}/summarize", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    number = int(answer.headers["X-Precis-Version"].rpartition("/")[2])
    assert answer.json()["version"] == number
    return number, answer.json()["summaries"][0]["summary"]


def test_the_champion_is_followed(
    store: Any, tmp_path: Path, sockets: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Promoted, spoiled, back, and the same model under another number: each as it should be."""
    texts = {n: served_models.texts_of(tmp_path_factory, n)[0] for n in (1, 2, 3)}
    with served_models.served(tmp_path, sockets) as server:
        assert ask(server) == (1, texts[1])
        promote(store, 2)
        server.wait(lambda health: health["version"] == 2)
        assert ask(server) == (2, texts[2])
        # Its stored texts are not what it writes.
        promote(store, WRONG_TEXTS)
        health = server.wait(lambda health: health["refused"])
        assert (
            "v4 does not give back what was judged: 4 of 4 stored texts"
            in health["refused"][0]["reason"]
        )
        assert ask(server) == (2, texts[2])
        # A flipped byte of its weights: no engine is started.
        weights = served_models.package_in_store(store, 3) / "model.safetensors"
        intact = weights.read_bytes()
        weights.unlink()
        weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
        engines = len(server.follower.start.started)
        promote(store, 3)
        health = server.wait(lambda health: len(health["refused"]) == 2)
        assert "v3 is not what was judged" in health["refused"][1]["reason"]
        time.sleep(1)  # several looks at the registry: it is not tried again
        assert len(server.wait(lambda health: True)["refused"]) == 2
        assert len(server.follower.start.started) == engines
        assert ask(server) == (2, texts[2])
        # Restored, and asked for.
        weights.write_bytes(intact)
        assert httpx.post(f"{server.url}/-/refresh").status_code == 202
        server.wait(lambda health: health["version"] == 3)
        assert ask(server) == (3, texts[3])
        # A rollback's version is another number of the same model.
        claims_tags = {claims.DIGEST: store.get_model_version(NAME, "3").tags[claims.DIGEST]}
        source = store.get_model_version(NAME, "3").source
        store.create_model_version(NAME, source, tags=claims_tags)
        engines = len(server.follower.start.started)
        promote(store, 5)
        server.wait(lambda health: health["version"] == 5)
        assert ask(server) == (5, texts[3])
        assert len(server.follower.start.started) == engines
        assert [one and one.number for one in server.noticed] == [1, 2, WRONG_TEXTS, 3, 5]
        metrics = httpx.get(f"{server.url}/metrics").text
        assert "precis_refused_versions 2.0" in metrics
        assert 'precis_served_version{digest="' in metrics
        assert len(os.listdir(tmp_path / "packages")) == 2  # this one and the one before
        told = [(event, payload["version"]) for event, payload in server.told]
    assert told == [
        (CHANGED, 1),
        (CHANGED, 2),
        (REFUSED, 4),
        (REFUSED, 3),
        (CHANGED, 3),
        (CHANGED, 5),
    ]


def test_a_version_that_cannot_be_compared_does_not_take_over(
    store: Any, tmp_path: Path, sockets: Path
) -> None:
    """While the store does not answer, tried again by itself; without stored texts, refused for good."""
    with served_models.served(tmp_path, sockets) as server:
        rows, away, looks = server.follower.view.rows, threading.Event(), []

        def sometimes(target: Any, count: int) -> Any:
            looks.append(target.number)
            if away.is_set():
                raise OSError("the store is away")
            return rows(target, count)

        away.set()
        server.follower.view.rows = sometimes
        promote(store, 2)
        health = server.wait(lambda health: len(looks) > 2)
        assert "the store is away" in health["refused"][0]["reason"]
        assert (len(health["refused"]), health["version"]) == (1, 1)
        away.clear()
        server.wait(lambda health: health["version"] == 2)  # nobody asked for it
        info = store.get_run(store.get_model_version(NAME, "3").run_id).info
        shutil.rmtree(Path(info.artifact_uri.removeprefix("file://")) / "sealed")
        promote(store, 3)
        health = server.wait(lambda health: len(health["refused"]) == 2)
        assert "no stored texts left" in health["refused"][1]["reason"]
        assert ask(server)[0] == 2


def test_what_runs_on_the_old_version_ends_there(
    store: Any, tmp_path: Path, sockets: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A stream that began before the takeover ends whole, as the old version's, and then the old one goes."""
    stored = served_models.texts_of(tmp_path_factory, 1)[0]
    body = {"messages": [{"role": "user", "content": documents()[0]}], "stream": True}
    with served_models.served(tmp_path, sockets) as server:
        old = server.follower.state.engine
        assert old is not None
        held = threading.Event()
        certain = threading.Event()
        write = old.write

        async def slow(asked: Any) -> Any:
            async for line in write(asked):
                yield line
                held.set()
                while not certain.is_set():
                    await asyncio.sleep(0.01)

        old.write = slow
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=body, timeout=60
        ) as answer:
            assert held.wait(20)
            promote(store, 2)
            server.wait(lambda health: health["version"] == 2)
            assert not old.has_ended()
            assert ask(server)[0] == 2
            certain.set()
            events = answer.read().decode()
        assert answer.headers["X-Precis-Version"] == f"{NAME}/1"
        assert events.endswith("data: [DONE]\n\n")
        pieces = [e.partition('"content": ')[2] for e in events.split("\n\n") if '"content": ' in e]
        joined = "".join(json.JSONDecoder().raw_decode(piece)[0] for piece in pieces)
        assert joined == stored
        until = time.monotonic() + 20
        while not old.has_ended() and time.monotonic() < until:
            time.sleep(0.05)
        assert old.has_ended()


def test_an_engine_that_ended_is_started_again(store: Any, tmp_path: Path, sockets: Path) -> None:
    """Requests wait for it; MLflow need not answer for that."""
    with served_models.served(tmp_path, sockets) as server:
        text = ask(server)
        first = server.follower.state.engine
        assert first is not None
        os.rename(tmp_path / "mlruns/mlflow.db", tmp_path / "mlruns/away.db")
        server.wait(lambda health: health["registry_error"])
        first.end()
        assert ask(server) == text
        health = server.wait(lambda health: health["status"] == "ready")
        assert health["engine_restarts"] == 1
        assert "precis_registry_reachable 0.0" in httpx.get(f"{server.url}/metrics").text
        os.rename(tmp_path / "mlruns/away.db", tmp_path / "mlruns/mlflow.db")
        server.wait(lambda health: health["registry_error"] is None)
        store.delete_registered_model_alias(NAME, "champion")
        health = server.wait(lambda health: health["registry_error"])
        assert "has no alias 'champion'" in health["registry_error"]
        assert ask(server) == text


def test_a_late_answer_is_504(store: Any, tmp_path: Path, sockets: Path) -> None:
    """503, and when to ask again, where there was no engine to wait for."""
    with served_models.served(tmp_path, sockets, request_timeout_seconds=0.5) as server:
        engine = server.follower.state.engine
        assert engine is not None

        async def never(asked: Any) -> Any:
            await asyncio.sleep(60)
            yield {}

        engine.write = never
        answer = httpx.post(f"{server.url}/summarize", json={"document": "a"}, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert engine.running == 0
        engine.refuses_connections = engine.retired = True  # nobody starts another
        answer = httpx.post(f"{server.url}/summarize", json={"document": "a"}, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.headers["Retry-After"]


def test_a_client_that_goes_away_ends_its_request(
    store: Any, tmp_path: Path, sockets: Path
) -> None:
    """An engine is not kept busy for nobody."""
    with served_models.served(tmp_path, sockets) as server:
        engine = server.follower.state.engine
        assert engine is not None

        async def never(asked: Any) -> Any:
            await asyncio.sleep(60)
            yield {}

        engine.write = never
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/summarize", json={"document": "a"}, timeout=1)
        until = time.monotonic() + 10
        while engine.running and time.monotonic() < until:
            time.sleep(0.05)
        assert engine.running == 0


def test_a_first_version_that_is_refused_ends_the_command(
    store: Any, tmp_path: Path, sockets: Path
) -> None:
    promote(store, WRONG_TEXTS)
    plan = ServePlan(NAME)
    server = Served(plan, tmp_path / "packages", served_models.ThreadStarter(sockets))
    server.thread.join(60)
    assert isinstance(server.error, RegistryError)
    assert "does not give back what was judged" in str(server.error)
