"""What a server tells of itself: health, metrics, the model's name, and a page to try it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from flows.serve import answers
from flows.serve.guard import knows_key
from flows.serve.metrics import Metrics
from flows.serve.openapi import RESPONSES
from flows.serve.plan import ServePlan
from flows.serve.state import ServingState

PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Status:
    """The endpoints that no engine answers. `refresh`: has the registry looked at now."""

    plan: ServePlan
    state: ServingState
    metrics: Metrics
    refresh: Callable[[], None]

    def add_to(self, app: FastAPI) -> None:
        """Add them to the app."""
        app.get("/v1/models", responses=RESPONSES)(self.models)
        app.get("/health", responses={503: {"description": "No version is served yet"}})(
            self.health
        )
        app.get("/health/live")(self.live)
        app.get("/metrics", response_class=Response, responses=RESPONSES)(self.metrics_text)
        app.post("/-/refresh", status_code=202, responses=RESPONSES)(self.refreshed)
        app.get("/", response_class=HTMLResponse)(self.page)

    async def live(self) -> dict[str, str]:
        """This process answers."""
        return {"status": "live"}

    async def health(self, request: Request) -> Response:
        """Which version is served, and what was refused; 503 while none is."""
        engine, state = self.state.engine, self.state
        about: dict[str, Any] = {
            "status": "ready" if state.is_ready else "starting",
            "model": self.plan.name,
        }
        if engine:
            about |= answers.model_of(engine.target) | {"since": state.since}
        if knows_key(self.plan, request.headers.get("authorization", "")):
            about |= {
                "engine": engine.info if engine else None,
                "rows_checked": state.rows_checked,
                "rows_unchecked": None if self.plan.check_rows else "--check-rows 0",
                "requests_running": engine.running if engine else 0,
                "engine_restarts": state.restarts,
                "refused": [refusal.as_dict() for refusal in state.refusals],
                "registry_error": state.registry_error,
            }
        return JSONResponse(about, 200 if state.is_ready else 503)

    async def metrics_text(self) -> Response:
        """Prometheus metrics."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self) -> dict[str, Any]:
        """The one model, under the name that requests give."""
        about: dict[str, Any] = {"id": self.plan.name, "object": "model", "owned_by": "precis"}
        if engine := self.state.engine:
            about["precis"] = answers.model_of(engine.target)
        return {"object": "list", "data": [about]}

    async def refreshed(self) -> dict[str, str]:
        """Look at the registry now; a version that was refused is tried again."""
        self.refresh()
        return {"status": "asked"}

    async def page(self) -> str:
        """A page to try it."""
        return PAGE.read_text(encoding="utf-8").replace("{{name}}", self.plan.name)
