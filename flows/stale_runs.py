"""Runs that ended without saying so: the next run of the model closes them in MLflow and in Prefect.

A process killed with -9 cannot report that. Its run would stay RUNNING: in MLflow always, in Prefect if
no zombie automation is there (the embedded server). A run that waits for approval has no process, and is
SCHEDULED in MLflow: it is left alone until Prefect has ended it (it was cancelled, or its time is over).
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from flows.stack import embedded
from tasks.tracking import history, mlflow_run

PROCESS, FLOW_RUN = "precis.process", "precis.flow_run_id"
GONE = "its process is gone; a retry continues where it stopped"
GONE_ASKING = "the process that asked for approval at a terminal is gone"


def process_name() -> str:
    """Host, pid and start time of this process: another process that gets the same pid differs."""
    own = psutil.Process()
    return f"{socket.gethostname()} {own.pid} {own.create_time():.2f}"


def close(client: Any, experiment_id: str, own_run_id: str) -> None:
    """Close the MLflow runs of this experiment whose process, or whose Prefect run, has ended."""
    open_runs, waiting = (
        [
            run
            for run in client.search_runs([experiment_id], f"attributes.status = '{status}'")
            if run.info.run_id != own_run_id
        ]
        for status in ("RUNNING", mlflow_run.SCHEDULED)
    )
    if not open_runs and not waiting:
        return
    with get_client(sync_client=True) as prefect:
        for run in open_runs:
            if _has_ended(run.data.tags, prefect):
                client.set_tag(run.info.run_id, mlflow_run.ERROR, GONE)
                client.set_terminated(run.info.run_id, status="FAILED")
        for run in waiting:
            if why := _waits_no_more(run.data.tags, prefect):
                end_waiting(client, run.info.run_id, why)


def end_waiting(client: Any, run_id: str, why: str) -> None:
    """Close a run that waits for approval and will not go on, in the history too.

    A tag that holds no entry is left as it is, for `precis history` to name: it stops no other run.
    """
    with contextlib.suppress(ValueError):
        history.withdraw_question(client, run_id, why)
    client.set_tag(run_id, mlflow_run.ERROR, why)
    client.set_terminated(run_id, status="KILLED")


def _waits_no_more(tags: dict[str, str], prefect: SyncPrefectClient) -> str:
    """Why a run that waits for approval will not go on; empty where it may."""
    flow_run = _flow_run(prefect, tags.get(FLOW_RUN))
    if flow_run is None or flow_run.state is None:
        return ""
    if not flow_run.state.is_final():
        asks_at_terminal = flow_run.deployment_id is None  # then a process waits
        return GONE_ASKING if asks_at_terminal and _has_ended(tags, prefect) else ""
    state = flow_run.state
    message = f": {state.message}" if state.message else ""
    return f"the run that waited for approval ended as {state.name}{message}"


def _has_ended(tags: dict[str, str], prefect: SyncPrefectClient) -> bool:
    host, _, rest = tags.get(PROCESS, "").partition(" ")
    flow_run = _flow_run(prefect, tags.get(FLOW_RUN))
    if flow_run is not None and flow_run.state is not None and flow_run.state.is_final():
        return True
    if host != socket.gethostname() or _alive(rest):
        return False
    # On a real server the zombie automation does this, for runs on any machine.
    if flow_run is not None and embedded.is_embedded():
        prefect.set_flow_run_state(flow_run.id, Crashed(message=GONE))
    return True


def _flow_run(prefect: SyncPrefectClient, flow_run_id: str | None) -> Any:
    try:
        return prefect.read_flow_run(UUID(flow_run_id)) if flow_run_id else None
    except ObjectNotFound:  # the run belongs to another Prefect server
        return None


def _alive(process: str) -> bool:
    pid, _, started = process.partition(" ")
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == started
    except psutil.NoSuchProcess:
        return False
