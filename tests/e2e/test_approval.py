"""Approval on real servers with a real worker: a winner waits in Prefect without a process, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import mlflow
import psutil
import pytest
from servers import Servers, wait_for
from stack import ROOT, judged_store

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]

REQUIRED = {"gate.approval": "required"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    stack = Servers(tmp_path_factory.mktemp("approval"))
    stack.start_from(judged_store(tmp_path_factory))
    with stack as running:
        yield running


def suspended(servers: Servers, changes: dict[str, str] | None = None) -> str:
    """A run whose challenger has passed the gate, and which waits."""
    run_id = servers.run("retrain", REQUIRED | (changes or {}))
    state = servers.wait(run_id, "PAUSED", "FAILED", "CRASHED", "COMPLETED")
    assert (state["type"], state["name"]) == ("PAUSED", "Suspended"), state["message"]
    return run_id


def answer(servers: Servers, run_id: str, **values: str) -> dict[str, Any]:
    """What the form's button sends, and what the server says to it."""
    answered: dict[str, Any] = servers.ask(f"flow_runs/{run_id}/resume", {"run_input": values})
    return answered


def processes_of_runs(servers: Servers) -> list[psutil.Process]:
    """All below the worker itself: the runs that it has started."""
    (worker,) = psutil.Process(servers.running["worker"].pid).children()
    return worker.children(recursive=True)


def page(servers: Servers, run_id: str, key: str) -> str:
    """The newest artifact of that key."""
    body = {"artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": [key]}}}
    found = servers.ask("artifacts/filter", body | {"sort": "CREATED_DESC"})
    return str(found[0]["data"])


def versions(servers: Servers) -> list[Any]:
    client = mlflow.MlflowClient(servers.mlflow)
    return sorted(client.search_model_versions("name='demo'"), key=lambda v: int(v.version))


def test_a_refusal_leaves_the_champion_and_a_line(servers: Servers) -> None:
    """While it waits the run has no process, no slot, no page that names a side; refused, nothing is made."""
    run_id = suspended(servers)
    wait_for(lambda: not processes_of_runs(servers), 60, "a suspended run holds a process")
    limits = servers.ask("v2/concurrency_limits/filter", {})
    assert {one["name"]: one["active_slots"] for one in limits}["precis-retrain-demo"] == 0
    assert servers.mlflow_runs()[run_id]["info"]["status"] == "SCHEDULED"
    pairs, report = page(servers, run_id, "blind-pairs"), page(servers, run_id, "report")
    assert pairs.count("## Pair ") == 20
    assert "(challenger)" not in pairs
    assert "Biggest wins" not in report
    waits = servers.client.ask("history", "demo")[-1]
    assert (waits["kind"], waits["version"], waits["approval"]) == ("promotion", None, "waits")
    form = json.dumps(servers.ask(f"flow_runs/{run_id}/input/filter", {"prefix": "", "limit": 200}))
    assert "it would be the first champion" in form
    for wrong in ({"decision": "refuse"}, {"decision": "refuse", "approved_by": " "}):
        assert answer(servers, run_id, **wrong)["status"] == "REJECT"
    short = {"decision": "refuse", "approved_by": "Ann", "preferred": "AB"}
    assert answer(servers, run_id, **short)["status"] == "REJECT"
    answer(servers, run_id, decision="refuse", approved_by="Ann Lee", comment="too terse",
           preferred="A" * 20)  # fmt: skip
    state = servers.wait(run_id)
    assert (state["type"], state["name"]) == ("COMPLETED", "NOT_APPROVED"), state["message"]
    assert "not approved by Ann Lee: too terse" in state["message"]
    assert versions(servers) == []
    refused = servers.client.ask("history", "demo")[-1]
    assert (refused["kind"], refused["approved_by"], refused["looks"]) == ("refusal", "Ann Lee", 2)
    assert "of 20 blind pairs the challenger was preferred in" in refused["reasons"][0]
    assert "(challenger)" in page(servers, run_id, "blind-pairs")
    assert servers.mlflow_runs()[run_id]["info"]["status"] == "FINISHED"


def test_an_approval_promotes_and_another_one_never_over_it(servers: Servers) -> None:
    """Of two that wait the first answered is registered, whatever data came; the other is judged again.

    What is cancelled while it waits is closed in MLflow and in the history by the model's next run.
    """
    cancelled = suspended(servers)
    servers.prefect("flow-run", "cancel", cancelled)
    rows = servers.client.folder / "arriving.jsonl"
    rows.write_bytes((ROOT / "deployments/demo/data/train.jsonl").read_bytes())
    first, second = suspended(servers, {"data.train": rows.name}), suspended(servers)
    assert servers.mlflow_runs()[cancelled]["info"]["status"] == "KILLED"
    assert "ended as Cancelled" in str(servers.client.ask("history", "demo"))
    rows.write_text("".join(reversed(rows.read_text().splitlines(keepends=True))))
    answer(servers, first, decision="approve", approved_by="Bob")
    state = servers.wait(first)
    assert state["name"] == "PROMOTE", state["message"]
    assert state["message"].endswith("approved by Bob")
    (version,) = versions(servers)
    assert version.tags["precis.approved_by"] == "Bob"
    promoted = servers.client.ask("history", "demo")[-1]  # its time is the answer's
    assert (promoted["version"], promoted["approved_by"], promoted["looks"]) == (1, "Bob", 2)
    answer(servers, second, decision="approve", approved_by="Bob")
    state = servers.wait(second)
    assert (state["name"], "same model" in state["message"]) == ("REJECT", True), state["message"]
    assert len(versions(servers)) == 1
    runs = servers.mlflow_runs().values()
    trained = [r for r in runs if any(m["key"] == "train/seconds" for m in r["data"]["metrics"])]
    assert len(trained) == 1  # the one that made the store
