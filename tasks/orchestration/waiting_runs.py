"""Retrain runs of a model that is being retrained: they wait on the server, not in a worker's place.

A run that finds the slot taken sets itself back to scheduled, as AwaitingConcurrencySlot, and its process
ends, so the worker's place is free for other models. The run that held the slot then starts the first
of those that wait; if it was killed, each tries again by itself. Runs with `if_busy: end` that a full
worker has not started yet are ended by the run that holds the slot.

Prefect's own limits were considered: a deployment's limit knows one deployment, not a model, and queues
runs with `if_busy: end` too.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import Pause, PrefectException
from prefect.states import AwaitingConcurrencySlot, Completed, Scheduled

BUSY = "BUSY"
AWAITING = "AwaitingConcurrencySlot"
RETRY_SECONDS = 60.0  # as long as a killed holder keeps its slot; times the place in line
PAGE = 200
# A server that does not answer now is asked again by the next run.
UNANSWERED = (httpx.HTTPError, RuntimeError, PrefectException)


def ran_before() -> bool:
    """Whether this flow run is a retry, or was suspended (which Prefect does not count as another run)."""
    run = _own_run()
    return run is not None and (run.run_count > 1 or bool(run.total_run_time))


def requeue(name: str) -> None:
    """End this process and have the worker start the run again later; returns where no worker started it.

    Raises prefect.exceptions.Pause, which Prefect's engine takes for an orderly end.
    """
    run = _own_run()
    if run is None or run.deployment_id is None:
        return  # `precis run`: nobody would start it again
    with get_client(sync_client=True) as client:
        if client.read_flow_run(run.id).state_type != StateType.RUNNING:
            return  # it is being cancelled
        place = sum(_since(other) < _since(run) for other in _waiting(client, name)) + 1
        running = _runs(client, name, FlowRunFilter(state=_in_state(StateType.RUNNING)))
        held_by = ", ".join(repr(other.name) for other in running if other.id != run.id)
        waits_for = f"{held_by} to end" if held_by else _killed_holder(client, run)
        state: Any = AwaitingConcurrencySlot(
            scheduled_time=datetime.now(UTC) + timedelta(seconds=RETRY_SECONDS * place),
            message=f"waits for the retrain of {name} by {waits_for}, number {place} in line; it takes no "
            "worker's place",
        )
        # By force: Prefect does not let a running run be scheduled again. One that is cancelled since the
        # reading above is scheduled again too.
        client.set_flow_run_state(run.id, state, force=True)
    raise Pause(state.message, state=state)


def _killed_holder(client: SyncPrefectClient, run: FlowRun) -> str:
    """Who holds the slot where no other run is running: one that was killed, most often this very run."""
    ended = {StateType.CRASHED, StateType.FAILED}
    was_killed = any(state.type in ended for state in client.read_flow_run_states(run.id))
    who = "its own earlier attempt" if was_killed else "a run that was killed"
    return f"{who}, which keeps the slot until its lease ends, a minute at most"


def start_first(name: str) -> None:
    """Start the run that has waited longest.

    Not safe against the moment between listing and writing, since Prefect has no compare-and-set: a run
    that starts or is cancelled then is scheduled again.
    """
    with contextlib.suppress(*UNANSWERED), get_client(sync_client=True) as client:
        for run in _waiting(client, name)[:1]:
            client.set_flow_run_state(run.id, Scheduled(message=f"the slot of {name} is free"))


def end_those_that_do_not_wait(name: str) -> None:
    """Complete as BUSY the runs with `if_busy: end` that are due, and wait for a place of a full worker.

    Not those that ran before: a retry, or a run that people have answered, has work to finish.
    """
    with contextlib.suppress(*UNANSWERED), get_client(sync_client=True) as client:
        due = FlowRunFilter(
            state=_in_state(StateType.SCHEDULED),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(
                before_=datetime.now(UTC)
            ),
        )
        for run in _runs(client, name, due):
            if run.parameters.get("if_busy") == "end" and not run.run_count:
                message = f"another retrain of {name} is running; this one did nothing"
                client.set_flow_run_state(run.id, Completed(name=BUSY, message=message))


def _waiting(client: SyncPrefectClient, name: str) -> list[FlowRun]:
    """The runs of the model that have been requeued and have not started since, the oldest first."""
    state = FlowRunFilterState(name=FlowRunFilterStateName(any_=[AWAITING]))
    return sorted(_runs(client, name, FlowRunFilter(state=state)), key=_since)


def _in_state(state: StateType) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=[state]))


def _runs(client: SyncPrefectClient, name: str, which: FlowRunFilter) -> list[FlowRun]:
    """Runs of this flow for the registered model `name`."""
    context = FlowRunContext.get()
    if context is None or context.flow is None:
        return []
    flow = FlowFilter(name=FlowFilterName(any_=[context.flow.name]))
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_filter=flow, flow_run_filter=which, limit=PAGE, offset=len(found)
        )
        found += page
        if len(page) < PAGE:
            return [run for run in found if _model(run) == name]


def _model(run: FlowRun) -> Any:
    recipe = run.parameters.get("recipe")
    return recipe.get("name") if isinstance(recipe, dict) else None


def _since(run: FlowRun) -> tuple[datetime, str]:
    """When it was created: its scheduled time changes as it waits."""
    return run.created or datetime.now(UTC), str(run.id)


def _own_run() -> FlowRun | None:
    context = FlowRunContext.get()
    return context.flow_run if context else None
