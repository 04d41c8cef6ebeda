"""Runs whose process was killed: the next run of the model closes them in MLflow and in Prefect.

A process killed with -9 cannot report that. Its run would stay RUNNING: in MLflow always, in Prefect if
no zombie automation is there (the embedded server).
"""

from __future__ import annotations

import socket
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from flows.stack import embedded
from tasks.tracking import mlflow_run

PROCESS, FLOW_RUN = "precis.process", "precis.flow_run_id"
GONE = "its process is gone; a retry continues where it stopped"


def process_name() -> str:
    """Host, pid and start time of this process: another process that gets the same pid differs."""
    own = psutil.Process()
    return f"{socket.gethostname()} {own.pid} {own.create_time():.2f}"


def close(client: Any, experiment_id: str, own_run_id: str) -> None:
    """Close the MLflow runs of this experiment whose process, or whose Prefect run, has ended."""
    running = "attributes.status = 'RUNNING'"
    open_runs = [
        r for r in client.search_runs([experiment_id], running) if r.info.run_id != own_run_id
    ]
    if not open_runs:
        return
    with get_client(sync_client=True) as prefect:
        for run in open_runs:
            if _has_ended(run.data.tags, prefect):
                client.set_tag(run.info.run_id, mlflow_run.ERROR, GONE)
                client.set_terminated(run.info.run_id, status="FAILED")


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
