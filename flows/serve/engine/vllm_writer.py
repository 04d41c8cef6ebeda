"""Token ids by a vLLM server, which this process starts beside itself, from token ids.

It is in this process's group, which tasks.processes.supervised ends as one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx

from flows.serve.engine.judged_package import JudgedPackage
from tasks.contracts.errors import PrecisError

MODEL = "model"
READY_SECONDS = 1800.0
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


def start(program: str, package: JudgedPackage, socket: Path, dtype: str) -> Any:
    """Start `vllm serve` on a Unix socket, and wait until it answers. Raises PrecisError if it ends."""
    settings = package.settings
    length = settings.max_source_tokens + settings.max_new_tokens
    words = [program, "serve", str(package.folder), "--served-model-name", MODEL, "--dtype", dtype]
    words += ["--max-model-len", str(length), "--uds", str(socket)]
    words += os.environ.get("PRECIS_VLLM_ARGUMENTS", "").split()
    try:
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=ENVIRONMENT | os.environ)
    except OSError as error:
        raise PrecisError(
            f"--vllm {program} cannot be started: {error}; name vLLM's command"
        ) from error
    end = time.monotonic() + READY_SECONDS
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://vllm"
    ) as client:
        while time.monotonic() < end:
            if server.poll() is not None:
                raise PrecisError(
                    f"vLLM ended (exit status {server.returncode}); its log stands above"
                )
            try:
                if client.get("/health", timeout=5).is_success:
                    return server
            except httpx.HTTPError:
                time.sleep(0.2)
    server.kill()
    raise PrecisError(f"vLLM did not answer within {READY_SECONDS:.0f} s; its log stands above")


class VllmWriter:
    """Completions of a vLLM server: prompts and answers as token ids."""

    def __init__(self, package: JudgedPackage, socket: Path) -> None:
        self.package = package
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=str(socket),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            ),
            base_url="http://vllm",
            timeout=None,
        )

    async def write(
        self, prompt: list[int], limit: int, in_pieces: bool
    ) -> AsyncGenerator[list[int]]:
        """New token ids, in one piece or as they are written. Closing it ends them."""
        body = {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": limit,
            "temperature": 0,
            "stop": list(self.package.rules.stop) or None,
            "stop_token_ids": self.package.end_ids,
            "return_token_ids": True,
            "stream": True,  # vLLM stops writing for a reader that closes the stream
        }
        whole: list[int] = []
        try:
            async with self.client.stream("POST", "/v1/completions", json=body) as answer:
                if answer.is_error:
                    await self._end_if_dead()
                    raise RuntimeError(
                        f"vLLM: {(await answer.aread()).decode(errors='replace')[:500]}"
                    )
                async for line in answer.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        await self._end_if_dead()
                        raise RuntimeError(f"vLLM: {event['error']}")
                    ids = [i for choice in event["choices"] for i in choice.get("token_ids") or []]
                    whole += ids
                    if in_pieces and ids:
                        yield ids
        except httpx.HTTPError:
            await self._end_if_dead()
            raise
        if not in_pieces:
            yield whole

    async def _end_if_dead(self) -> None:
        """End this process where vLLM's own engine has ended: its server answers errors for seconds more.

        The proxy then starts another, and asks that one.
        """
        try:
            is_alive = (await self.client.get("/health", timeout=5)).is_success
        except httpx.TimeoutException:  # it is busy
            is_alive = True
        except httpx.HTTPError:
            is_alive = False
        if not is_alive:
            print("vLLM's engine has ended", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
