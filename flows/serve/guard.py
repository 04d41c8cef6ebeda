"""Before the endpoints: who may ask, how much, and what was answered."""

from __future__ import annotations

import hmac
import time
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from flows.serve import answers
from flows.serve.answers import error_of
from flows.serve.metrics import Metrics
from flows.serve.plan import ServePlan
from flows.serve.requests import BadRequest

_OPEN = {"/", "/health", "/health/live"}
_COUNTED = {"/", "/health", "/v1/chat/completions", "/v1/completions", "/summarize"}
_ENGINES = {"/v1/chat/completions", "/v1/completions", "/summarize"}


class Guard:
    """Keeps out requests without the key, and counts what is answered: ASGI, so streams stay streams."""

    def __init__(self, app: Any, plan: ServePlan, metrics: Metrics) -> None:
        self.app, self.plan, self.metrics = app, plan, metrics
        self.answering = 0  # requests that an engine answers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request, until its answer's end."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, metrics = scope["path"], self.metrics
        endpoint = path if path in _COUNTED else "other"
        started, status, version = time.monotonic(), "499", ""  # 499: its client has gone

        async def counted(message: Any) -> None:
            nonlocal status, version
            if message["type"] == "http.response.start":
                status = str(message["status"])
                headers = {name.lower(): value for name, value in message["headers"]}
                version = headers.get(b"x-precis-version", b"").decode().rpartition("/")[2]
            await send(message)

        with metrics.running.track_inprogress():
            self.answering += path in _ENGINES
            try:
                await self._allowed(path, scope)(scope, receive, counted)
            finally:
                self.answering -= path in _ENGINES
                metrics.requests.labels(endpoint, status, version).inc()
                metrics.seconds.labels(endpoint).observe(time.monotonic() - started)

    def _allowed(self, path: str, scope: Any) -> Any:
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        if path in _OPEN or knows_key(self.plan, given):
            too_many = path in _ENGINES and self.answering > self.plan.max_requests
            return answers.too_many() if too_many else self.app
        message = "send the API key in the header Authorization: Bearer KEY"
        return JSONResponse(error_of(message), 401, {"WWW-Authenticate": "Bearer"})


def knows_key(plan: ServePlan, given: str) -> bool:
    """Whether an Authorization header holds the key, where one is wanted."""
    if plan.api_key is None:
        return True
    scheme, _, key = given.partition(" ")
    same = hmac.compare_digest(key.strip().encode(), plan.api_key.encode())
    return scheme.lower() == "bearer" and same


async def body_of(plan: ServePlan, request: Request) -> bytes:
    """A request's JSON, as bytes. Raises BadRequest for another kind, or for more than may be asked."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRequest(415, "send JSON, with the header Content-Type: application/json")
    most = plan.max_request_bytes
    too_large = BadRequest(413, f"the request is larger than {most} bytes (--max-request-bytes)")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_large
    return bytes(body)
