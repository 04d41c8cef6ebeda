"""Tell others how a run ended: its name and tags in Prefect, and an event for automations."""

from __future__ import annotations

import httpx
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.logging import get_run_logger

from flows import notify, run_name
from flows.outcome import Outcome
from tasks.contracts.records import DatasetRef

VERDICT = "precis.verdict"


def announce(outcome: Outcome, dataset: DatasetRef) -> None:
    """Tag the current flow run after recipe, data and verdict; emit `precis.verdict`.

    Named so too, unless somebody has typed a name.

    The event's payload: verdict, headline, reasons, version (or null), mlflow_run_id, report.
    """
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    data, verdict = dataset.digest[: run_name.DATA_DIGITS], outcome.decision.ending
    name = run_name.after_verdict(outcome.name, dataset.digest, verdict)
    tags = {outcome.name, f"data:{data}", f"verdict:{verdict}"}
    # The version is registered already: a server that is away must not fail the run now.
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(
                context.flow_run.id,
                name=None if run_name.typed() else name,
                tags={*context.flow_run.tags, *tags},
            )
    except (httpx.HTTPError, RuntimeError) as error:
        get_run_logger().warning(f"the run could not be named after its verdict: {error}")
    emit_event(
        VERDICT,
        resource=notify.resource(outcome.name),
        payload={
            "verdict": verdict,
            "headline": outcome.headline,
            "reasons": list(outcome.decision.reasons),
            "version": outcome.version,
            "mlflow_run_id": outcome.mlflow_run_id,
            "report": outcome.report,
        },
    )
