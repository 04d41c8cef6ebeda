"""Engine processes: started, asked, drained, ended."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from flows.serve.plan import ServePlan
from tasks.contracts.errors import PrecisError
from tasks.processes import supervised

POLL_SECONDS = 0.1
START_SECONDS = 3600.0  # vLLM compiles
LOG_CHARACTERS = 3000


@dataclass(frozen=True)
class Target:
    """The version that is to be served: where it is registered, its title, and its package's digest."""

    uri: str
    digest: str
    title: str  # NAME v3
    number: int


class EngineGone(Exception):
    """The engine process ended, or does not answer."""


class EngineStopped(EngineGone):
    """The engine stopped writing an answer, and says why; it may run on."""


class EngineBusy(Exception):
    """The engine runs, and no connection to it can be made now: too many are open."""


class EngineFailed(Exception):
    """The engine runs, and its package's code failed at this request: asking again gives the same."""


class EngineRefused(Exception):
    """The engine takes these items not: the place of each, and why."""

    def __init__(self, faults: list[tuple[int, str]]) -> None:
        super().__init__(str(faults))
        self.faults = faults


@dataclass(eq=False)
class Engine:
    """A running engine of one version. `end`: ends its process, and returns when it is gone."""

    target: Target
    client: httpx.AsyncClient
    process_ended: Callable[[], bool]
    end: Callable[[], None]
    info: dict[str, Any] = field(default_factory=dict)
    running: int = 0  # requests that it is answering
    retired: bool = False
    # Nothing listens any more: seconds before the last of its processes has ended.
    refuses_connections: bool = False

    def has_ended(self) -> bool:
        """Whether it can answer nothing more."""
        return self.refuses_connections or self.process_ended()

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[Engine]:
        """Counted as running: it is not ended before the block."""
        self.running += 1
        try:
            yield self
        finally:
            self.running -= 1

    async def write(self, asked: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The lines of /write (see engine/app.py).

        Raises EngineRefused for items that it does not take, EngineFailed where the package's code cannot
        read them, EngineBusy while it cannot be reached, EngineGone when it is gone or stopped writing.
        """
        try:
            async with self.client.stream("POST", "/write", json=asked) as answer:
                if answer.status_code == httpx.codes.BAD_REQUEST:
                    raise EngineRefused(json.loads(await answer.aread())["faults"])
                if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
                    raise EngineFailed(json.loads(await answer.aread())["error"])
                if answer.is_error:
                    raise EngineGone(f"status {answer.status_code}: {await answer.aread()!r}")
                async for line in answer.aiter_lines():
                    found = json.loads(line)
                    if "error" in found:
                        raise EngineStopped(found["error"])
                    yield found
        except httpx.HTTPError as error:
            if isinstance(error, httpx.ConnectError) and not self.process_ended():
                self.refuses_connections |= is_refusal(error)
                if not self.refuses_connections:
                    raise EngineBusy(f"{type(error).__name__}: {error}") from error
            raise EngineGone(f"{type(error).__name__}: {error}") from error

    async def drain(self, seconds: float) -> None:
        """Wait until its requests have ended, `seconds` at most; then end it."""
        self.retired = True
        until = time.monotonic() + seconds
        while self.running and not self.has_ended() and time.monotonic() < until:
            await asyncio.sleep(POLL_SECONDS)
        await asyncio.to_thread(self.end)
        await self.client.aclose()


def is_refusal(error: BaseException | None) -> bool:
    """Whether nothing listens; else this machine has no descriptor, or no place in a queue, left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ECONNREFUSED, errno.ENOENT):
            return True
        error = error.__cause__ or error.__context__
    return False


def client_of(socket: Path) -> httpx.AsyncClient:
    """A client of what listens on a Unix socket."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30)
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(socket), limits=limits),
        base_url="http://engine",
        timeout=None,
    )


class EngineStarter:
    """Starts engine processes; their sockets lie in a folder that only this user can enter."""

    def __init__(self, plan: ServePlan, sockets: Path, logs: Path) -> None:
        """Raises PrecisError where vLLM is asked for and not there."""
        found = shutil.which(plan.vllm or "vllm")
        wanted = plan.engine == "vllm" or plan.vllm is not None
        if wanted and plan.engine != "transformers" and not found:
            raise PrecisError(
                f"{plan.vllm or 'vllm'} is no command on this machine; install vLLM in an environment of its "
                "own and name its command with --vllm, or take --engine transformers"
            )
        self.vllm = found if plan.engine != "transformers" else None
        self.sockets, self.logs, self.count = sockets, logs, 0

    async def __call__(self, target: Target, folder: Path) -> Engine:
        """Start an engine on a checked package; returns once it answers. Raises PrecisError with its log."""
        self.count += 1
        socket = self.sockets / f"{self.count}.sock"
        log = self.logs / f"engine-{self.count}-v{target.number}.log"
        log.unlink(missing_ok=True)
        words = [
            *supervised.PYTHON_MODULE,
            "flows.serve.engine",
            str(folder),
            "--socket",
            str(socket),
        ]
        words += ["--engine", "vllm" if self.vllm else "transformers"]
        words += ["--vllm", self.vllm] if self.vllm else []
        # As in steps: threads that wait sleep. Engines load nothing from a hub, and know no API key.
        env = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        env.pop("PRECIS_API_KEY", None)
        process = await asyncio.to_thread(supervised.start, words, log, env)
        client = client_of(socket)

        def end() -> None:
            supervised.stop(process)
            socket.unlink(missing_ok=True)

        engine = Engine(target, client, lambda: process.poll() is not None, end)
        try:
            engine.info = await self._ready(engine, log)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(end))
            await client.aclose()
            raise
        return engine

    async def _ready(self, engine: Engine, log: Path) -> dict[str, Any]:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if engine.has_ended():
                tail = log.read_text(errors="replace")[-LOG_CHARACTERS:]
                raise PrecisError(f"the engine of {engine.target.title} ended; {log} ends:\n{tail}")
            try:
                answer = await engine.client.get("/info", timeout=30)
                found: dict[str, Any] = answer.raise_for_status().json()
                return found
            except httpx.HTTPError:
                await asyncio.sleep(POLL_SECONDS)
        raise PrecisError(f"the engine of {engine.target.title} did not answer; see {log}")


def say(line: str) -> None:
    """A line of the log, on standard error, with the time."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True)
