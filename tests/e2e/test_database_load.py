"""The Prefect server of `precis up` under many runs at once, on SQLite, with all automations."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from servers import Servers

from deployments import automations

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]
RUNS, AT_ONCE, TASKS = 12, 6, 4


@pytest.fixture
def server(tmp_path: Path) -> Any:
    """A Prefect server with the deployments retrain/demo and check-data/demo, and their automations."""
    with_server = Servers(tmp_path)
    with_server.start("prefect")
    try:
        with_server.ask("work_pools/", {"name": "precis", "type": "process"})
        for name in ("retrain", "check-data"):
            flow_id = with_server.ask("flows/", {"name": name})["id"]
            deployment = {"name": "demo", "flow_id": flow_id, "tags": ["precis"],
                          "parameters": {"recipe": {"name": "demo"}}, "work_pool_name": "precis"}  # fmt: skip
            with_server.ask("deployments/", deployment)
        with temporary_settings({PREFECT_API_URL: with_server.api}):
            assert len(automations.install()) == 3
        yield with_server
    finally:
        with_server.close()


def heartbeat(run_id: str) -> dict[str, Any]:
    """An event as a run's heartbeat sends it."""
    return {
        "event": "prefect.flow-run.heartbeat",
        "occurred": datetime.now(UTC).isoformat(),
        "id": str(uuid4()),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run_id}"},
        "related": [{"prefect.resource.id": "prefect.tag.precis", "prefect.resource.role": "tag"}],
        "payload": {},
    }


def one_run(server: Servers) -> str:
    """What a run asks of the server from its creation to its end; its state's type afterwards."""
    body = {"state": {"type": "SCHEDULED"}}
    deployment = server.deployment("retrain")["id"]
    run_id = server.ask(f"deployments/{deployment}/create_flow_run", body)["id"]
    state = f"flow_runs/{run_id}/set_state"
    server.ask(state, {"state": {"type": "PENDING"}})
    server.ask(state, {"state": {"type": "RUNNING"}})
    for number in range(TASKS):
        task = {"flow_run_id": run_id, "task_key": f"step-{number}", "dynamic_key": "0"}
        task_id = server.ask("task_runs/", task)["id"]
        server.ask("events", [heartbeat(run_id) for _ in range(3)])
        server.ask(f"task_runs/{task_id}/set_state", {"state": {"type": "RUNNING"}})
        artifact = {"key": f"step-{number}", "type": "markdown", "data": "-", "flow_run_id": run_id}
        server.ask("artifacts/", artifact)
        server.ask(f"task_runs/{task_id}/set_state", {"state": {"type": "COMPLETED"}})
    server.ask(state, {"state": {"type": "COMPLETED"}})
    return str(server.state(run_id)["type"])


def test_no_run_and_no_event_meets_a_locked_database(server: Servers) -> None:
    """With Prefect's own transactions states are refused here, and events are lost."""
    with ThreadPoolExecutor(AT_ONCE) as runs:
        states = list(runs.map(lambda _: one_run(server), range(RUNS)))
    assert set(states) == {"COMPLETED"}
    log = (server.folder / "prefect.log").read_text()
    assert "database is locked" not in log
    assert " ERROR " not in log
    assert not (
        server.client.folder / "prefect/dlq"
    ).exists()  # where events go that could not be kept
