"""Heartbeats of `precis run`, by whose absence a server's zombie automation knows that it died.

Deployed runs have Prefect's own (PREFECT_FLOWS_HEARTBEAT_FREQUENCY). Those sleep in whole seconds, and
the end of a run waits for them: half a second, as a rule, of each run at a terminal.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator

from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.settings import get_current_settings

from flows.stack import embedded

SECONDS = 30.0  # as deployments have it: the automation allows for four


@contextlib.contextmanager
def beating() -> Iterator[None]:
    """Emit Prefect's heartbeat event of the flow run under way, unless Prefect does, or nobody listens."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    if embedded.is_embedded() or get_current_settings().flows.heartbeat_frequency:
        yield
        return
    run, done = context.flow_run, threading.Event()
    resource = {
        "prefect.resource.id": f"prefect.flow-run.{run.id}",
        "prefect.resource.name": run.name,
    }
    related = [
        {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
        for tag in run.tags  # automations know our runs by one
    ]

    def beat() -> None:
        while True:
            emit_event("prefect.flow-run.heartbeat", resource, related=related)
            if done.wait(SECONDS):
                return

    # In the run's own context: events then name its flow, and go to its server.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(beat,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
