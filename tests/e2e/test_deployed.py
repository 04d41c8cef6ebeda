"""Deployments on real servers with a real worker: schedules, events, limits, messages, rollback.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
import warm
from servers import Servers, wait_for
from stack import ROOT, judged_store

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]


class Received(HTTPServer):
    """A webhook: keeps what is posted to each path."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Receiver)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def of(self, path: str, text: str) -> list[Any]:
        return [
            body for where, body in self.posts if where == path and text in body.get("text", "")
        ]


class _Receiver(BaseHTTPRequestHandler):
    server: Received

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, json.loads(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def webhook() -> Iterator[Received]:
    server = Received()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, webhook: Received) -> Iterator[Servers]:
    hooks = {
        "PRECIS_SLACK_WEBHOOK": f"{webhook.url}/slack",
        "PRECIS_WEBHOOK": f"{webhook.url}/plain",
        # MLflow's own webhooks go to https and public addresses alone, unless told otherwise.
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    }
    stack = Servers(tmp_path_factory.mktemp("deployed"), extra=hooks)
    stack.start_from(judged_store(tmp_path_factory))
    with stack as running:
        client, events = mlflow.MlflowClient(stack.mlflow), ["model_version_alias.created"]
        client.create_webhook(name="alias", url=f"{webhook.url}/mlflow", events=events)
        yield running


@pytest.fixture(scope="module")
def promoted(servers: Servers) -> dict[str, Any]:
    """A first champion, through the deployment; that it also trains there: test_two_retrains below."""
    run_id = servers.run("retrain")
    state = servers.wait(run_id)
    assert state["name"] == "PROMOTE", state["message"]
    return {"run_id": run_id, "state": state}


def _deployed(servers: Servers) -> dict[str, Any]:
    """All that a deploy could change, without what only says when it was looked at."""
    noise = {"updated", "created", "last_polled", "status", "version", "version_id", "version_info"}
    deployed = {
        "deployments": servers.ask("deployments/filter", {}),
        "automations": servers.ask("automations/filter", {}),
        "limits": servers.ask("v2/concurrency_limits/filter", {}),
    }
    return dict(_leaves(deployed, noise))


def _leaves(value: Any, noise: set[str], path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key in value.keys() - noise:
            yield from _leaves(value[key], noise, f"{path}.{key}")
    elif isinstance(value, list):
        named = sorted(
            value, key=lambda one: json.dumps(one.get("id", "") if isinstance(one, dict) else one)
        )
        for number, one in enumerate(named):
            yield from _leaves(one, noise, f"{path}[{number}]")
    else:
        yield path, value


def test_a_second_deploy_changes_nothing(servers: Servers) -> None:
    """Deployments, schedules, automations and limits keep their ids; both `ls` commands list them."""
    before = _deployed(servers)
    servers.deploy()
    after = _deployed(servers)
    assert {path: (before.get(path), after.get(path)) for path in before.keys() | after.keys()
            if before.get(path) != after.get(path)} == {}  # fmt: skip
    listed = servers.prefect("deployment", "ls")
    for name in ("retrain/demo", "evaluate-champion/demo", "check-data/demo", "rollback/any-model"):
        assert name in listed
    names = servers.prefect("automation", "ls", COLUMNS="300")
    for name in ("precis: zombies", "precis: new data for demo", "precis: decay of demo"):
        assert name in names


def test_a_deploy_corrects_what_an_automation_does_not_whether_it_is_on(servers: Servers) -> None:
    """One that someone switched off stays off; another debounce is taken over."""
    automations = servers.ask("automations/filter", {})
    arrivals = next(one for one in automations if one["name"].startswith("precis: new data"))
    path = f"automations/{arrivals['id']}"
    servers.ask(path, {"enabled": False}, "PATCH")
    try:
        servers.deploy(PRECIS_DEBOUNCE_SECONDS="20")
        changed = servers.ask(path)
        assert (changed["enabled"], changed["trigger"]["within"]) == (False, 20)
    finally:
        servers.ask(path, {"enabled": True}, "PATCH")
        servers.deploy()
    assert servers.ask(path)["trigger"]["within"] == 10


def test_a_deployed_run_ends_in_its_verdict(servers: Servers, promoted: dict[str, Any]) -> None:
    """The state says verdict and numbers; name and tags say recipe, data and verdict."""
    assert promoted["state"]["message"].startswith("PROMOTED demo v1: rougeL +")
    run = servers.ask(f"flow_runs/{promoted['run_id']}")
    tags = set(run["tags"])
    data = next(tag.removeprefix("data:") for tag in tags if tag.startswith("data:"))
    assert run["name"] == f"demo {data} PROMOTE"
    assert {"demo", "verdict:PROMOTE"} <= tags


def test_verdicts_go_to_webhooks(
    servers: Servers, promoted: dict[str, Any], webhook: Received
) -> None:
    """In Slack's form and plain: the headline, and each reason in a line of its own."""
    headline = promoted["state"]["message"]
    for path in ("/slack", "/plain"):
        posts = wait_for(lambda path=path: webhook.of(path, headline), 60, f"no post to {path}")  # type: ignore[misc]
        assert "\n- rougeL gained +" in posts[0]["text"]
    assert set(webhook.of("/slack", headline)[0]) == {"text"}
    plain = webhook.of("/plain", headline)[0]
    assert (plain["event"], plain["payload"]["verdict"]) == ("precis.verdict", "PROMOTE")


def _changes(servers: Servers) -> list[dict[str, Any]]:
    return servers.events("precis.champion.changed")


def test_a_promotion_is_told(servers: Servers, promoted: dict[str, Any], webhook: Received) -> None:
    """One event, on the webhooks too; and MLflow's own webhook for aliases."""
    event = wait_for(lambda: _changes(servers), 60, "no event")[0]
    assert event["resource"]["prefect.resource.id"] == "precis.model.demo"
    version = mlflow.MlflowClient(servers.mlflow).get_model_version("demo", "1")
    headline = "demo v1 is champion (promotion); it was none"
    assert event["payload"] == {
        "name": "demo", "from_version": None, "from_digest": None, "to_version": 1,
        "to_digest": version.tags["precis.model_digest"], "why": "promotion",
        "run": version.tags["precis.run_id"], "headline": headline,
    }  # fmt: skip
    flow_run = f"prefect.flow-run.{promoted['run_id']}"
    assert flow_run in [one["prefect.resource.id"] for one in event["related"]]
    for path in ("/slack", "/plain"):
        wait_for(lambda path=path: webhook.of(path, headline), 60, f"no post to {path}")  # type: ignore[misc]
    posts = [body for path, body in webhook.posts if path == "/mlflow"]
    assert [(one["entity"], one["action"]) for one in posts] == [("model_version_alias", "created")]
    assert posts[0]["data"] == {"name": "demo", "alias": "champion", "version": "1"}


def test_a_failed_run_is_reported(servers: Servers, webhook: Received) -> None:
    """A failure says what to fix, on the webhooks too."""
    run_id = servers.run("retrain", {"data.train": "no/such/file.jsonl"})
    state = servers.wait(run_id)
    assert state["type"] == "FAILED"
    assert "no/such/file.jsonl" in state["message"]
    wait_for(lambda: webhook.of("/slack", "no/such/file.jsonl"), 60, "no post of the failure")


def test_a_schedule_fires(servers: Servers, promoted: dict[str, Any]) -> None:
    """A cron schedule starts a run by itself; unchanged data make it a cheap one."""
    deployment = servers.deployment("retrain")
    parameters = servers.ask(f"flow_runs/{promoted['run_id']}")["parameters"]
    body = [{"schedule": {"cron": "* * * * *"}, "active": True, "parameters": parameters,
             "max_scheduled_runs": 1}]  # fmt: skip
    path = f"deployments/{deployment['id']}/schedules"
    made = servers.ask(path, body)[0]

    def ended() -> list[dict[str, Any]]:
        return [
            run
            for run in servers.runs("retrain")
            if run["auto_scheduled"] and run["state"]["type"] == "COMPLETED"
        ]

    try:
        run = wait_for(ended, 300, f"no scheduled run; {servers.log()}")[0]
        assert run["state"]["name"] == "REJECT"
        wait_for(
            lambda: "same model" in json.dumps(servers.events("precis.verdict")), 60, "no event"
        )
    finally:
        servers.ask(f"{path}/{made['id']}", method="DELETE")


def test_a_burst_of_arrivals_starts_one_check_and_the_check_one_retrain(
    servers: Servers, promoted: dict[str, Any]
) -> None:
    """Debounced: three notices, one check-data run; 420 unseen rows are enough for a retrain."""
    words = ["notify-data", "demo", "--source", "deployments/demo/data"]
    env, precis = servers.client.environment(), warm.warm_precis()
    notices = [precis.start(words, ROOT, env) for _ in range(3)]  # at once: debounced by 10 s
    assert [notice.wait() for notice in notices] == [0, 0, 0]
    checks = wait_for(lambda: servers.runs("check-data"), 120, "no check started")
    state = servers.wait(checks[0]["id"])
    assert state["name"] == "RETRAIN_STARTED", state["message"]
    assert "demo: 420 new rows" in state["message"]
    started = [run for run in servers.runs("retrain") if "rows:420" in run["tags"]]
    assert len(started) == 1
    servers.prefect("flow-run", "cancel", started[0]["id"])
    servers.wait(started[0]["id"])
    assert len(servers.runs("check-data")) == 1
    assert len(servers.events("precis.data.arrived")) == 3


def test_a_decayed_champion_is_retrained(servers: Servers, promoted: dict[str, Any]) -> None:
    """evaluate-champion on fresh rows with other people's summaries: DECAYED starts a retrain."""
    before = {run["id"] for run in servers.runs("retrain")}
    fresh = servers.client.folder / "fresh.jsonl"
    fresh.write_text(_scrambled(servers.client.folder / "deployments/demo/data/fresh.jsonl"))
    state = servers.wait(servers.run("evaluate-champion", {"evaluation.fresh": str(fresh)}))
    assert state["name"] == "DECAYED", state["message"]

    def new() -> list[dict[str, Any]]:
        return [run for run in servers.runs("retrain") if run["id"] not in before
                and not run["auto_scheduled"]]  # fmt: skip

    run = wait_for(new, 60, "decay started no retrain")[0]
    servers.prefect("flow-run", "cancel", run["id"])
    servers.wait(run["id"])


def _scrambled(path: Path) -> str:
    rows = [json.loads(line) for line in path.read_text().splitlines()[:50]]
    summaries = [row["summary"] for row in rows]
    moved = [*summaries[7:], *summaries[:7]]
    return "\n".join(
        json.dumps(row | {"summary": summary}) for row, summary in zip(rows, moved, strict=True)
    )


def test_two_retrains_of_one_model(servers: Servers, promoted: dict[str, Any]) -> None:
    """While one runs, `end` says so and ends, `wait` waits and runs after it."""
    first = servers.run("retrain", {"training.seed": 7, "data.train_rows": 60})
    wait_for(servers.trainers, 120, "the first run does not train")
    ends = servers.wait(servers.run("retrain", if_busy="end"))
    assert (ends["type"], ends["name"]) == ("COMPLETED", "BUSY")
    assert "another retrain of demo is running" in ends["message"]
    waits = servers.run("retrain")
    one, other = servers.wait(first), servers.wait(waits)
    assert {one["type"], other["type"]} == {"COMPLETED"}
    runs = {run["id"]: run for run in servers.runs("retrain")}
    assert runs[waits]["end_time"] > runs[first]["end_time"]
    assert (
        servers.mlflow_runs()[waits]["info"]["start_time"]
        >= (servers.mlflow_runs()[first]["info"]["end_time"])
    )


def test_a_rollback_asks_first(servers: Servers, promoted: dict[str, Any]) -> None:
    """The run pauses with a form; refused, nothing changes; the last champion alone has no former."""
    deployment = servers.ask("deployments/name/rollback/any-model")
    path = f"deployments/{deployment['id']}/create_flow_run"
    body = {
        "parameters": {"name": "demo", "to": 1, "approval": True},
        "state": {"type": "SCHEDULED"},
    }
    run_id = servers.ask(path, body)["id"]
    assert servers.wait(run_id, "PAUSED", "FAILED", "COMPLETED")["type"] == "PAUSED"
    # Prefect stores form and question one after the other, once the run is paused.
    question = "Make v1 of demo champion again?"
    wait_for(lambda: question in json.dumps(_asked(servers, run_id)), 60, "no question is stored")
    assert "Put it back" in json.dumps(_asked(servers, run_id))
    answer = {"run_input": {"approve": False, "reason": ""}}
    servers.ask(f"flow_runs/{run_id}/resume", answer)
    state = servers.wait(run_id)
    assert (state["type"], state["message"]) == (
        "CANCELLED",
        "not approved: the champion of demo stays",
    )
    none = {
        "parameters": {"name": f"no-{uuid.uuid4()}", "approval": True},
        "state": {"type": "SCHEDULED"},
    }
    failed = servers.wait(servers.ask(path, none)["id"])
    assert failed["type"] == "FAILED"
    assert f"no model '{none['parameters']['name']}' is registered" in failed["message"]
    assert "it has: demo" in failed["message"]
    client = mlflow.MlflowClient(servers.mlflow)
    assert client.get_experiment_by_name(none["parameters"]["name"]) is None


def _asked(servers: Servers, run_id: str) -> Any:
    body = {"prefix": "", "limit": 10, "exclude_keys": []}
    return servers.ask(f"flow_runs/{run_id}/input/filter", body)


def test_a_move_by_hand_is_told_once_it_is_seen(
    servers: Servers, promoted: dict[str, Any], webhook: Received
) -> None:
    """`precis history` sees it, and `precis verify`; each move is one event, however often they look."""
    client, env = mlflow.MlflowClient(servers.mlflow), servers.client.environment()

    def look(*words: str) -> list[tuple[int | None, int | None]]:
        warm.warm_precis()(list(words), servers.client.folder, env)
        told = [one["payload"] for one in _changes(servers) if one["payload"]["why"] == "by hand"]
        return sorted((one["from_version"] or 0, one["to_version"] or 0) for one in told)

    assert look("history", "demo") == []
    client.delete_registered_model_alias("demo", "champion")
    assert wait_for(lambda: look("history", "demo"), 60, "no event") == [(1, 0)]
    wait_for(lambda: webhook.of("/plain", "demo has no champion any more"), 60, "no post")
    client.set_registered_model_alias("demo", "champion", "1")
    wait_for(lambda: len(look("verify", "demo", "--rows", "0")) == 2, 60, "no event")
    assert look("history", "demo") == [(0, 1), (1, 0)]
    assert len(webhook.of("/plain", "demo has no champion any more")) == 1
