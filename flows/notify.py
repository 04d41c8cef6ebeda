"""Send events to the Prefect server, so that its automations can act on them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows import s3_event
from tasks.contracts.errors import DataError, ServerError
from tasks.contracts.formatting import nearest

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

ARRIVED, DECAYED = "precis.data.arrived", "precis.champion.decayed"
UNAUTHORIZED = 401
PAGE = 200  # deployments per request


def resource(name: str) -> dict[str, str]:
    """A registered model as the resource of events and automations."""
    return {"prefect.resource.id": f"precis.model.{name}", "prefect.resource.name": name}


def send(
    event: str,
    name: str,
    payload: Mapping[str, Any],
    flow_run_id: str | None = None,
    event_id: UUID | None = None,
) -> str:
    """Send an event about the registered model `name`; returns the event's id.

    `event_id`: of an event that several processes may send; it is stored once.

    Returns once the server has confirmed it: Prefect's own emit_event sends from a thread, and only logs
    a failure. Raises ServerError if the event was not accepted.
    """
    from prefect.client.orchestration import get_client
    from prefect.events import Event

    related = [
        {"prefect.resource.id": f"prefect.flow-run.{run_id}", "prefect.resource.role": "flow-run"}
        for run_id in [flow_run_id]
        if run_id
    ]
    identity = {"id": str(event_id)} if event_id else {}
    message = Event.model_validate(
        {
            "event": event,
            "resource": resource(name),
            "related": related,
            "payload": dict(payload),
            **identity,
        }
    )
    problem = f"event {event} of model {name!r} was not sent"
    with answering(problem), get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[message.model_dump(mode="json")])
    return str(message.id)


def is_known(event_id: UUID) -> bool:
    """Whether the server has an event of this id. Raises ServerError where it does not answer."""
    from prefect.client.orchestration import get_client

    body = {"filter": {"id": {"id": [str(event_id)]}}, "limit": 1}
    problem = f"event {event_id} cannot be asked for"
    with answering(problem), get_client(sync_client=True) as client:
        found: list[Any] = client.request("POST", "/events/filter", json=body).json()["events"]
    return bool(found)


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
    """Send `precis.data.arrived` for a model; returns a sentence that says so."""
    require_server()
    deployed = {
        str(deployment.parameters["recipe"].get("name"))
        for deployment in _deployments(
            f"event {ARRIVED} of model {name!r} was not sent", "retrain", "check-data"
        )
    }
    if name not in deployed:
        raise ServerError(
            f"no deployment is of a model {name!r}, so nothing would take the event; nothing was "
            f"sent{nearest(name, deployed)}"
        )
    send(ARRIVED, name, {"source": source})
    return f"{name}: sent {ARRIVED}" + (f" ({source})" if source else "")


def arrived_by_s3(text: str) -> list[str]:
    """Send `precis.data.arrived` to each retrain deployment that trains on an object of an S3 event.

    `text`: the notification as AWS or MinIO wrote it (s3_event.py). One event a deployment, however
    many of its objects came. Returns a sentence for each. Raises DataError for text that is no S3
    event, ServerError if the server does not answer.
    """
    objects = s3_event.created(text)
    require_server()
    messages = []
    deployments = _deployments("deployments cannot be read", "retrain")
    for deployment in deployments:
        recipe: dict[str, Any] = deployment.parameters["recipe"]
        train = str(recipe.get("data", {}).get("train", ""))
        if its_own := [uri for uri in objects if s3_event.holds(train, uri)]:
            payload = {
                "source": its_own[0],
                "sources": its_own,
                "deployment": f"retrain/{deployment.name}",
            }
            send(ARRIVED, recipe["name"], payload)
            messages.append(f"{recipe['name']}: sent {ARRIVED} ({', '.join(its_own)})")
    if not messages:
        created = ", ".join(objects) or "no object was created"
        messages.append(
            f"{created}: none of {len(deployments)} retrain deployments trains on it; nothing sent"
        )
    return messages


def require_server() -> None:
    """Raise ServerError if no Prefect server is configured: an event to a temporary one is lost."""
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        raise ServerError(
            "no Prefect server is configured to send the event to; set PREFECT_API_URL, for example "
            "http://127.0.0.1:4200/api"
        )


@contextlib.contextmanager
def answering(problem: str) -> Iterator[None]:
    """Turn a refusal of the server, or its silence, into a ServerError that starts with `problem`."""
    import httpx
    from prefect.settings import get_current_settings

    try:
        yield
    # RuntimeError: there is no API at that address; its cause says what is there
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as caught:
        error = caught.__cause__ or caught if isinstance(caught, RuntimeError) else caught
        lines = str(error).strip().splitlines() or [repr(error)]
        url = get_current_settings().api.url
        fix = "start it, or correct PREFECT_API_URL"
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == UNAUTHORIZED:
            fix = "set PREFECT_API_AUTH_STRING to its user:password"
        raise ServerError(
            f"{problem}: the Prefect server at {url} says: {lines[0]}; {fix}"
        ) from caught


def _deployments(problem: str, *flows: str) -> list[DeploymentResponse]:
    """All deployments of these flows that have a recipe; `problem` begins an error."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    of_flows = FlowFilter(name=FlowFilterName(any_=list(flows)))
    deployments: list[DeploymentResponse] = []
    with answering(problem), get_client(sync_client=True) as client:
        while True:
            page = client.read_deployments(
                flow_filter=of_flows, limit=PAGE, offset=len(deployments)
            )
            deployments += page
            if len(page) < PAGE:
                return [d for d in deployments if isinstance(d.parameters.get("recipe"), dict)]
