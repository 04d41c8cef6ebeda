"""What clients talk to: OpenAI's endpoints, /summarize, health, metrics and a page, before the engines.

litellm and vLLM's router were considered: neither changes the engine behind it by a registry's alias, nor
refuses what was not judged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse, Response, StreamingResponse

from flows.serve import answers
from flows.serve.answers import RETRY_AFTER, Collected, error_of, too_many
from flows.serve.disconnect import CLIENT_GONE, unless_gone
from flows.serve.engines import (
    Engine,
    EngineBusy,
    EngineFailed,
    EngineGone,
    EngineRefused,
    EngineStopped,
    say,
)
from flows.serve.guard import Guard, body_of
from flows.serve.metrics import Metrics
from flows.serve.openapi import RESPONSES, takes
from flows.serve.plan import ServePlan
from flows.serve.requests import (
    BadRequest,
    ChatRequest,
    CompletionRequest,
    SummarizeRequest,
    read,
)
from flows.serve.state import ServingState
from flows.serve.status import Status

# An engine that ends before anything was sent to the client: the second try finds out that it is gone, the
# third waits for its successor.
TRIES = 3
Body = ChatRequest | CompletionRequest | SummarizeRequest


class Proxy:
    """One server's endpoints."""

    def __init__(self, plan: ServePlan, state: ServingState, refresh: Callable[[], None]) -> None:
        """`refresh`: has the registry looked at now."""
        self.plan, self.state = plan, state
        self.metrics = Metrics(plan.name, state)
        self.status = Status(plan, state, self.metrics, refresh)

    def app(self) -> FastAPI:
        """The ASGI app."""
        app = FastAPI(title=f"precis serve {self.plan.reference}", docs_url=None, redoc_url=None)
        app.add_middleware(Guard, plan=self.plan, metrics=self.metrics)
        app.add_exception_handler(HTTPException, _http_error)
        for path, kind, summary in (
            ("/v1/chat/completions", ChatRequest, "A conversation's, or one document's, answer"),
            ("/v1/completions", CompletionRequest, "What follows a prompt, which is used as it is"),
            ("/summarize", SummarizeRequest, "Summaries of documents"),
        ):
            app.post(path, summary=summary, responses=RESPONSES, openapi_extra=takes(kind))(
                self._endpoint(kind)
            )
        self.status.add_to(app)
        return app

    def _endpoint(self, kind: type[Any]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await self._answer(kind, request)

        endpoint.__name__ = kind.__name__
        return endpoint

    async def _answer(self, kind: type[Any], request: Request) -> Response:
        deadline = time.monotonic() + self.plan.request_timeout_seconds
        try:
            async with asyncio.timeout(self.plan.request_timeout_seconds):
                asked: Body = read(kind, await body_of(self.plan, request))
                self._check_fields(asked)
                answer = await unless_gone(request, self._asked(asked, deadline))
                return answer or Response(status_code=CLIENT_GONE)
        except TimeoutError:
            return self._too_late()
        except BadRequest as error:
            return JSONResponse(error_of(str(error), error.field), error.status)

    async def _asked(self, asked: Body, deadline: float) -> Response:
        gone: EngineGone | None = None
        for attempt in range(1, TRIES + 1):
            async with AsyncExitStack() as held:
                engine = await held.enter_async_context(self.state.engine_in_use())
                try:
                    return await self._from(engine, asked, held, deadline)
                except EngineRefused as refused:
                    raise _as_bad_request(asked, refused) from None
                except EngineFailed as error:
                    say(f"{engine.target.title}: the package failed at a request ({error})")
                    return _failed(error)
                except EngineBusy as error:
                    say(f"{engine.target.title}: no connection for a request ({error})")
                    return too_many()
                except EngineGone as error:
                    say(f"{engine.target.title}: a request failed ({error})")
                    gone = error
            if attempt < TRIES:
                self.metrics.retried.inc()
        return _failed(gone) if isinstance(gone, EngineStopped) else _unavailable()

    async def _from(
        self, engine: Engine, asked: Body, held: AsyncExitStack, deadline: float
    ) -> Response:
        """An engine's answer. Raises EngineGone while nothing was sent to the client."""
        kind, items = asked.question()
        field, limit = asked.limit()
        most = engine.info["max_new_tokens"]
        if limit is not None and limit > most:
            raise BadRequest(
                400,
                f"{field}: {limit} is more than {most}, with which this model was judged",
                field,
            )
        in_pieces = bool(asked.stream)
        question = {"kind": kind, "items": items, "max_tokens": limit, "in_pieces": in_pieces}
        lines = await held.enter_async_context(aclosing(engine.write(question)))
        found, target = Collected(), engine.target
        headers = {
            "X-Precis-Version": f"{self.plan.name}/{target.number}",
            "X-Precis-Digest": target.digest,
        }
        if not in_pieces or isinstance(asked, SummarizeRequest):
            async for line in lines:
                found.add(line)
            self._count(found)
            headers["X-Precis-Truncated"] = str(found.truncated)
            return JSONResponse(answers.whole(kind, self.plan.name, target, found), headers=headers)
        first = await anext(lines)  # refusals, and most ends of engines, come before it
        options = asked.stream_options
        return StreamingResponse(
            self._events(first, lines, held.pop_all(), deadline, found, (
                kind, self.plan.name, target), bool(options and options.include_usage)),
            media_type="text/event-stream",
            headers=headers | {"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )  # fmt: skip

    async def _events(
        self,
        first: dict[str, Any],
        lines: AsyncIterator[dict[str, Any]],
        held: AsyncExitStack,
        deadline: float,
        found: Collected,
        about: tuple[Any, str, Any],
        include_usage: bool,
    ) -> AsyncIterator[str]:
        async def all_lines() -> AsyncIterator[dict[str, Any]]:
            yield first
            async for line in lines:
                yield line

        async with held:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    async for event in answers.events(*about, all_lines(), found, include_usage):
                        yield event
            except (EngineGone, TimeoutError) as error:
                say(
                    f"an answer that had begun could not be finished: {error or 'it took too long'}"
                )
                message = "the answer could not be finished; ask again"
                yield answers.event_of(error_of(message, code="unavailable"))
            finally:
                self._count(found)

    def _check_fields(self, asked: Body) -> None:
        """Raise BadRequest for what types alone do not show."""
        if asked.model is not None and asked.model not in (self.plan.name, self.plan.reference):
            message = (
                f"model: this server has {self.plan.name!r} alone; name it, or leave the field out"
            )
            raise BadRequest(404, message, "model")
        if isinstance(asked, SummarizeRequest) and (asked.document is None) == (
            asked.documents is None
        ):
            raise BadRequest(400, "give either document or documents", "document")

    def _count(self, found: Collected) -> None:
        self.metrics.prompt_tokens.inc(found.prompt_tokens)
        self.metrics.output_tokens.inc(found.output_tokens)
        self.metrics.truncated.inc(found.truncated)

    def _too_late(self) -> Response:
        if not self.state.is_ready:
            return _unavailable()
        seconds = self.plan.request_timeout_seconds
        message = f"no answer within {seconds:g} s (--request-timeout-seconds)"
        return JSONResponse(error_of(message, code="timeout"), 504)


def _as_bad_request(asked: Body, refused: EngineRefused) -> BadRequest:
    """A refusal of the package's, with the field that it is about."""
    field = "messages" if isinstance(asked, ChatRequest) else "prompt"
    if isinstance(asked, SummarizeRequest):
        field = "document" if asked.documents is None else "documents"
    several = isinstance(asked, SummarizeRequest) and asked.documents is not None
    parts = [f"{field}[{i}]: {why}" if several else f"{field}: {why}" for i, why in refused.faults]
    return BadRequest(400, "; ".join(parts)[:2000], field)


def _failed(error: Exception) -> Response:
    message = f"this request could not be answered: {str(error)[:500]}"
    return JSONResponse(error_of(message, code="server_error"), 500)


def _unavailable() -> Response:
    message = "no version is served at the moment; ask again"
    return JSONResponse(error_of(message, code="unavailable"), 503, RETRY_AFTER)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(error_of(str(error.detail)), error.status_code, error.headers)
