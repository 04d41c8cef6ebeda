"""Telling the Prefect server that something happened, so that its automations can act on it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import s3_event
from tasks.contracts.errors import DataError, ServerError

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

ARRIVED, DECAYED = "precis.data.arrived", "precis.champion.decayed"
UNAUTHORIZED = 401
PAGE = 200  # deployments a request


def resource(name: str) -> dict[str, str]:
    """A registered model, as events and automations name it."""
    return {"prefect.resource.id": f"precis.model.{name}", "prefect.resource.name": name}


def send(event: str, name: str, payload: Mapping[str, Any], flow_run_id: str | None = None) -> str:
    """Hand the server an event about registered model `name`; returns the event's id.

    Returns once the server has answered that it took it: Prefect's own emit_event queues, sends
    from a thread, and only logs that it failed. Raises ServerError when it was not taken.
    """
    from prefect.client.orchestration import get_client
    from prefect.events import Event

    related = [
        {"prefect.resource.id": f"prefect.flow-run.{one}", "prefect.resource.role": "flow-run"}
        for one in [flow_run_id]
        if one
    ]
    made = Event.model_validate(
        {
            "event": event,
            "resource": resource(name),
            "related": related,
            "payload": dict(payload),
        }
    )
    problem = f"event {event} of model {name!r} was not sent"
    with answering(problem), get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[made.model_dump(mode="json")])
    return str(made.id)


def data(name: str | None, source: str | None, s3_event_file: str | None) -> list[str]:
    """What `precis notify-data` does: for a model, or for an S3 event in a file (`-`: stdin)."""
    if name is not None:
        return [arrived(name, source)]
    try:
        text = sys.stdin.read() if s3_event_file == "-" else Path(str(s3_event_file)).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{s3_event_file} cannot be read: {error}; name the event's file"
        ) from error
    return arrived_by_s3(text)


def arrived(name: str, source: str | None) -> str:
    """Send `precis.data.arrived` for a model; returns what was done, in a sentence."""
    require_server()
    send(ARRIVED, name, {"source": source})
    return f"{name}: sent {ARRIVED}" + (f" ({source})" if source else "")


def arrived_by_s3(text: str) -> list[str]:
    """Send `precis.data.arrived` to each retrain deployment that trains on an object of an S3 event.

    `text`: the notification as AWS or MinIO wrote it (s3_event.py). One event a deployment, however
    many of its objects came. Returns what was done, a sentence each. Raises DataError for text that
    is no S3 event, ServerError when the server is not there.
    """
    found = s3_event.created(text)
    require_server()
    said = []
    readers = _deployments()
    for deployment in readers:
        recipe: dict[str, Any] = deployment.parameters["recipe"]
        train = str(recipe.get("data", {}).get("train", ""))
        if mine := [uri for uri in found if s3_event.holds(train, uri)]:
            payload = {
                "source": mine[0],
                "sources": mine,
                "deployment": f"retrain/{deployment.name}",
            }
            send(ARRIVED, recipe["name"], payload)
            said.append(f"{recipe['name']}: sent {ARRIVED} ({', '.join(mine)})")
    if not said:
        what = ", ".join(found) or "no object was created"
        said.append(
            f"{what}: none of {len(readers)} retrain deployments trains on it; nothing sent"
        )
    return said


def require_server() -> None:
    """Raises ServerError when no Prefect server is configured: a temporary one would help nobody."""
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        raise ServerError(
            "no Prefect server is configured, so nobody would hear of it; set PREFECT_API_URL, such "
            "as http://127.0.0.1:4200/api"
        )


@contextlib.contextmanager
def answering(problem: str) -> Iterator[None]:
    """What the server refuses, or does not answer, as a ServerError that says so."""
    import httpx
    from prefect.settings import get_current_settings

    try:
        yield
    # RuntimeError: no API at that address, and what was found there as its cause
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as caught:
        error = caught.__cause__ or caught if isinstance(caught, RuntimeError) else caught
        lines = str(error).strip().splitlines() or [repr(error)]
        url = get_current_settings().api.url
        mend = "start it, or correct PREFECT_API_URL"
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == UNAUTHORIZED:
            mend = "set PREFECT_API_AUTH_STRING to its user:password"
        raise ServerError(
            f"{problem}: the Prefect server at {url} says: {lines[0]}; {mend}"
        ) from caught


def _deployments() -> list[DeploymentResponse]:
    """All deployments of the retrain flow that hold a recipe."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    wanted = FlowFilter(name=FlowFilterName(any_=["retrain"]))
    found: list[DeploymentResponse] = []
    with answering("deployments cannot be read"), get_client(sync_client=True) as client:
        while True:
            page = client.read_deployments(flow_filter=wanted, limit=PAGE, offset=len(found))
            found += page
            if len(page) < PAGE:
                return [one for one in found if isinstance(one.parameters.get("recipe"), dict)]
