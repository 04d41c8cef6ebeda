"""What the proxy asks an engine process: GET /info, and POST /write, answered in lines of JSON.

/write takes `{"kind": "documents" | "chat" | "prompts", "items": [...], "max_tokens": N | null,
"in_pieces": bool}`. 400: `{"faults": [[index, reason], ...]}`. 422: `{"error": reason}`, where the package's
code fails at them. 200, a line each: first
`{"prompts": [[tokens, cut tokens], ...]}`; `{"index": i, "piece": text}`; for each item in the end
`{"index": i, "text": ..., "finished": bool, "output_tokens": n}`; or `{"error": reason}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import traceback
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from flows.serve.disconnect import CLIENT_GONE, unless_gone
from flows.serve.engine.judged_package import JudgedPackage, Prompt, Refused

T = TypeVar("T")


class Writer(Protocol):
    """What writes token ids: vLLM or transformers."""

    def write(self, prompt: list[int], limit: int, in_pieces: bool) -> AsyncGenerator[list[int]]:
        """New token ids of a prompt, at most `limit`."""
        ...


class EngineService:
    """Prompts, tokens, texts: one version's."""

    def __init__(self, package: JudgedPackage, writer: Writer, **facts: str) -> None:
        """`facts`: what /info says of the engine (`engine`, `dtype`)."""
        self.package, self.writer, self.facts = package, writer, facts
        self.texts = ThreadPoolExecutor(1)  # a tokenizer is not safe to share

    def info(self) -> dict[str, Any]:
        """The limits that a request may be told of before it is sent."""
        settings = self.package.settings
        return self.facts | {
            "max_new_tokens": settings.max_new_tokens,
            "max_source_tokens": settings.max_source_tokens,
            "chat": self.package.is_chat,
            "inputs": list(settings.inputs),
        }

    async def prompts(self, kind: str, items: list[Any]) -> list[Prompt]:
        """The prompts of a request. Raises Refused."""
        package = self.package
        if kind == "prompts":
            return await self._in_text_thread(package.raw_prompts, items)
        read = package.conversation if kind == "chat" else package.documents
        documents = await self._in_text_thread(read, items)
        loop, ended, running = asyncio.get_running_loop(), False, list[Future[list[str]]]()

        def summarize(parts: list[str]) -> list[str]:
            running.append(asyncio.run_coroutine_threadsafe(self._summaries(parts), loop))
            if ended:
                running[-1].cancel()
            return running[-1].result()

        if package.settings.summarize != "map_reduce":
            return await self._in_text_thread(package.prompts, documents, summarize)
        try:  # not in the one thread for texts: it waits for summaries of parts, which need that thread
            return await asyncio.to_thread(package.prompts, documents, summarize)
        finally:  # also where its client has gone: what is being written for it ends
            ended = True
            for each in running:
                each.cancel()

    async def lines(
        self, prompts: list[Prompt], limit: int, in_pieces: bool
    ) -> AsyncGenerator[dict[str, Any]]:
        """The lines of an answer, those of all items as they come."""
        yield {"prompts": [[len(prompt.ids), prompt.cut_tokens] for prompt in prompts]}
        ready: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._write(index, prompt, limit, in_pieces, ready))
            for index, prompt in enumerate(prompts)
        ]
        try:
            left = len(tasks)
            while left:
                line = await ready.get()
                yield line
                if "error" in line:
                    return
                left -= "text" in line
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(
        self, index: int, prompt: Prompt, limit: int, in_pieces: bool, ready: asyncio.Queue[Any]
    ) -> None:
        ids: list[int] = []
        sent = ""
        try:
            if not prompt.is_empty:
                pieces = self.writer.write(prompt.ids, limit, in_pieces)
                async with contextlib.aclosing(pieces):
                    async for piece in pieces:
                        ids += piece
                        if in_pieces:
                            certain = await self._in_text_thread(
                                self.package.rules.certain_text, ids
                            )
                            if len(certain) > len(sent):
                                ready.put_nowait({"index": index, "piece": certain[len(sent) :]})
                                sent = certain
            written = await self._in_text_thread(self.package.written, ids, limit)
            finished = written.finished or prompt.is_empty
        except Exception as error:  # noqa: BLE001 - the reader is told: the answer has begun
            ready.put_nowait({"error": f"{type(error).__name__}: {error}"})
            return
        ready.put_nowait(
            {
                "index": index,
                "text": written.text,
                "finished": finished,
                "output_tokens": written.output_tokens,
            }
        )

    async def _summaries(self, parts: list[str]) -> list[str]:
        """Summaries of parts that fit a prompt each."""
        limit = self.package.settings.max_new_tokens
        encode = self.package.prompt.encode_and_count
        settings, tokenizer = self.package.settings, self.package.tokenizer

        async def one(part: str) -> str:
            ids, _ = await self._in_text_thread(encode, tokenizer, part, settings)
            async with contextlib.aclosing(self.writer.write(ids, limit, False)) as pieces:
                whole = [i async for piece in pieces for i in piece]
            return (await self._in_text_thread(self.package.written, whole, limit)).text

        tasks = [asyncio.create_task(one(part)) for part in parts]
        try:
            return list(await asyncio.gather(*tasks))
        finally:  # the others, where one has failed
            for task in tasks:
                task.cancel()

    async def _in_text_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.texts, function, *arguments)


def engine_app(service: EngineService) -> FastAPI:
    """The ASGI app of an engine process."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/info")
    async def info() -> dict[str, Any]:
        return service.info()

    @app.post("/write")
    async def write(request: Request) -> Response:
        asked = json.loads(await request.body())
        most = service.package.settings.max_new_tokens
        limit = min(asked.get("max_tokens") or most, most)
        try:
            making = service.prompts(asked["kind"], asked["items"])
            prompts = await unless_gone(request, making)
        except Refused as refused:
            return JSONResponse({"faults": refused.faults}, 400)
        except Exception as error:  # noqa: BLE001 - the package's code may raise whatever it likes
            traceback.print_exc()  # to the engine's log
            return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 422)
        if prompts is None:
            return Response(status_code=CLIENT_GONE)

        async def body() -> AsyncGenerator[str]:
            async with contextlib.aclosing(
                service.lines(prompts, limit, bool(asked.get("in_pieces")))
            ) as lines:
                async for line in lines:
                    yield json.dumps(line) + "\n"

        return StreamingResponse(body(), media_type="application/x-ndjson")

    return app
