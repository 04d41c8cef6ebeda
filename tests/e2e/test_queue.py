"""Many queued runs drain without a stuck one. By hand: it takes minutes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from servers import Servers, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
RUNS = 60


def test_60_queued_runs_drain(tmp_path: Path) -> None:
    """All complete, no slot stays taken, no process and no open MLflow run is left."""
    with Servers(tmp_path / "queue") as servers:
        first = servers.run("retrain")
        assert servers.wait(first)["name"] == "PROMOTE"
        ids = [servers.run("retrain") for _ in range(RUNS)]

        def open_runs() -> Counter[str]:
            return Counter(servers.state(run_id)["type"] for run_id in ids)

        wait_for(lambda: open_runs() == {"COMPLETED": RUNS}, 3000, f"{open_runs()}")
        assert {servers.state(run_id)["name"] for run_id in ids} == {"REJECT"}  # the same model
        limits = servers.ask("v2/concurrency_limits/filter", {})
        assert {limit["name"]: limit["active_slots"] for limit in limits} == {
            "precis-gpu": 0,
            "precis-retrain-demo": 0,
        }
        assert not servers.trainers()
        statuses = Counter(run["info"]["status"] for run in servers.mlflow_runs().values())
        assert statuses == {"FINISHED": RUNS + 1}
