"""What watches a champion: fresh labelled data, and training data that arrive. On a real server.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from stack import SMALL, Stack, prefect_server_in, stack_with_judged
from warm import WarmPrecis

from tasks.contracts.recipe import Gate
from tasks.contracts.records import Scores, from_json
from tasks.gate.decay import Decay, decide_decay
from tasks.tracking.predictions_table import read_table

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]
RECIPE = "deployments/recipes/demo.yaml"
# As a worker would run it: the recipe is a parameter, the flow's state the answer.
CHECK = """
import json, sys
from pathlib import Path
from flows import recipes
from flows.check_data import check_data
recipe = recipes.load(Path(sys.argv[1]), json.loads(sys.argv[2]))
state = check_data(recipe, *sys.argv[3:], return_state=True)
print(json.dumps([state.name, state.message]))
"""


@dataclass
class Watched:
    """A stack with one champion, and its Prefect server."""

    stack: Stack
    promoted: dict[str, Any]
    warm_precis: WarmPrecis

    def ask(self, path: str, body: Any = None) -> Any:
        """One request of the Prefect server's API."""
        data = json.dumps(body).encode() if body is not None else None
        url = f"{self.stack.env['PREFECT_API_URL']}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def events(self, name: str, at_least: int = 1) -> list[dict[str, Any]]:
        """The events of that name, oldest first; the server writes them down after a while."""
        wanted = {"filter": {"event": {"name": [name]}, "order": "ASC"}}
        end = time.monotonic() + 30
        while True:
            events: list[dict[str, Any]] = self.ask("/events/filter", wanted)["events"]
            if len(events) >= at_least or time.monotonic() > end:
                return events
            time.sleep(0.5)

    def precis(self, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """`precis ARGV` in the stack's folder."""
        return self.warm_precis(list(argv), self.stack.folder, self.stack.environment(), stdin)

    def evaluate(self, **changes: Any) -> dict[str, Any]:
        """`precis evaluate --json`, parsed."""
        done = self.precis("evaluate", RECIPE, "--json", *_sets(changes))
        assert done.returncode == 0, done.stderr[-3000:]
        decision: dict[str, Any] = json.loads(done.stdout)
        return decision

    def check(self, *deployment: str, **changes: Any) -> tuple[str, str]:
        """State name and message of the check-data flow."""
        sets = json.dumps(_sets(changes)[1::2])
        done = self.precis("-c", CHECK, RECIPE, sets, *deployment)
        assert done.returncode == 0, done.stderr[-3000:]
        name, message = json.loads(done.stdout.splitlines()[-1])
        return name, message

    def deploy(self, name: str, train: str) -> str:
        """A deployment of the retrain flow; returns its id."""
        flow = self.ask("/flows/", {"name": "retrain"})["id"]
        parameters = {"recipe": {"name": name, "data": {"train": train}}}
        body = {"name": name, "flow_id": flow, "parameters": parameters}
        return str(self.ask("/deployments/", body)["id"])

    def runs_of(self, deployment_id: str) -> list[dict[str, Any]]:
        """All flow runs of a deployment."""
        wanted = {"deployments": {"id": {"any_": [deployment_id]}}}
        runs: list[dict[str, Any]] = self.ask("/flow_runs/filter", wanted)
        return runs


def _sets(changes: dict[str, Any]) -> list[str]:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return [word for key, v in (SMALL | named).items() for word in ("--set", f"{key}={v}")]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, warm_precis: WarmPrecis) -> Iterator[Watched]:
    """One promotion on embedded MLflow, under a real Prefect server."""
    folder = tmp_path_factory.mktemp("watch")
    stack = stack_with_judged(folder / "client", tmp_path_factory)
    with prefect_server_in(folder, stack.environment()) as url:
        stack.env = {"PREFECT_API_URL": url}
        yield Watched(stack, stack.run(), warm_precis)


@pytest.fixture(scope="module")
def steady(watched: Watched) -> dict[str, Any]:
    return watched.evaluate()


def test_a_champion_on_fresh_rows_of_its_kind_has_not_decayed(
    watched: Watched, steady: dict[str, Any]
) -> None:
    """STEADY or INCONCLUSIVE, as the flow's state; the sealed scores are not taken again."""
    assert steady["verdict"] in {"STEADY", "INCONCLUSIVE"}
    assert (steady["name"], steady["champion_version"]) == ("demo", 1)
    assert (steady["sealed"]["rows"], steady["fresh"]["rows"]) == (50, 100)
    assert {"ingest", "evaluate.champion"} <= set(steady["skipped"])
    judged = watched.promoted["metrics"]["rougeL"]["challenger"]
    assert steady["sealed"]["mean"] == pytest.approx(judged)
    run = watched.ask(f"/flow_runs/{steady['prefect_flow_run_id']}")
    assert (run["state"]["name"], run["state"]["message"]) == (
        steady["verdict"],
        steady["headline"],
    )
    assert run["state"]["message"].startswith(f"{steady['verdict']} demo v1: rougeL 0.")
    pages = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": ["decay"]}}}
    assert steady["headline"] in watched.ask("/artifacts/filter", pages)[0]["data"]
    assert watched.events("precis.champion.decayed", at_least=0) == []


def test_the_decision_can_be_made_again_from_what_is_stored(
    watched: Watched, steady: dict[str, Any]
) -> None:
    """Both tables and the settings lie with the run; the same numbers to the last digit."""
    runs = watched.stack.folder / "mlruns/artifacts/demo"
    folder = runs / steady["mlflow_run_id"] / "artifacts/decay"
    stored = from_json(Decay, (folder / "decision.json").read_bytes())
    inputs = json.loads((folder / "decay_inputs.json").read_text())
    scores = {who: from_json(Scores, json.dumps(one)) for who, one in inputs["scores"].items()}
    again = decide_decay(
        read_table(folder / "sealed.json"),
        read_table(folder / "fresh.json"),
        Gate.model_validate(inputs["gate"]),
        inputs["max_decay"],
        champion_version=inputs["champion_version"],
        sealed_scores=scores["sealed"],
        fresh_scores=scores["fresh"],
    )
    assert again == stored


def test_it_is_done_once(watched: Watched, steady: dict[str, Any]) -> None:
    """Evaluated again on the same rows: nothing is generated, the numbers are the same."""
    again = watched.evaluate()
    assert {"fresh", "evaluate.fresh", "evaluate.champion"} <= set(again["skipped"])
    numbers = ("verdict", "drop", "low", "high", "sealed", "fresh")
    assert [again[key] for key in numbers] == [steady[key] for key in numbers]


def test_fresh_rows_that_ask_for_something_else_are_decay(watched: Watched) -> None:
    """References of other rows: DECAYED, an event with the numbers, and the history as it was."""
    before = watched.stack.ask("history", "demo")
    lines = (watched.stack.folder / "deployments/demo/data/fresh.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    summaries = [row["summary"] for row in rows]
    mixed = [row | {"summary": summaries[i - 37]} for i, row in enumerate(rows)]
    path = watched.stack.folder / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mixed))
    decision = watched.evaluate(evaluation__fresh=path)
    assert decision["verdict"] == "DECAYED"
    assert decision["low"] > decision["max_decay"]
    (event,) = watched.events("precis.champion.decayed")
    assert event["resource"] == {
        "prefect.resource.id": "precis.model.demo",
        "prefect.resource.name": "demo",
    }
    assert event["payload"]["drop"] == decision["drop"]
    assert event["payload"]["mlflow_run_id"] == decision["mlflow_run_id"]
    related = {one["prefect.resource.id"] for one in event["related"]}
    assert f"prefect.flow-run.{decision['prefect_flow_run_id']}" in related
    assert watched.stack.ask("history", "demo") == before


def test_no_fresh_data_and_no_champion_are_failures_that_say_what_to_do(watched: Watched) -> None:
    """The command ends with 1 and one line."""
    words = ["evaluate", RECIPE, *_sets({})]
    bare = watched.precis(*words, "--set", "evaluation.fresh=null")
    assert bare.returncode == 1
    assert "evaluation.fresh of recipe 'demo' is not set" in bare.stderr
    nobody = watched.precis(*words, "--set", "name=nobody")
    assert nobody.returncode == 1
    assert "model 'nobody' has no champion to evaluate; promote one" in nobody.stderr
    sealed = {"evaluation.fresh": "deployments/demo/data/evaluation.jsonl"}
    every = _sets(sealed | {"data.evaluation_rows": 200})
    known = watched.precis("evaluate", RECIPE, *every)
    assert known.returncode == 1
    assert "is new: each of 200 is, or nearly is" in known.stderr


def test_new_rows_start_one_retrain(watched: Watched) -> None:
    """Too few start nothing; enough start the deployment, once for the same data."""
    assert watched.check() == ("NOT_ENOUGH", "demo: 0 new rows of the 100 that start a retrain")
    state, message = watched.check(data__train_rows=312)
    assert (state, message) == ("NOT_ENOUGH", "demo: 12 new rows of the 100 that start a retrain")
    state, message = watched.check(data__train_rows=720)
    assert state == "Failed"
    assert "has no deployment 'retrain/demo'; deploy it" in message
    deployment = watched.deploy("demo", "deployments/demo/data/train.jsonl")
    state, message = watched.check(data__train_rows=720)
    (run,) = watched.runs_of(deployment)
    assert state == "RETRAIN_STARTED"
    assert message == (
        f"demo: 420 new rows, at least 100: started retrain/demo (run {run['name']})"
    )
    assert run["state"]["type"] == "SCHEDULED"
    assert run["parent_task_run_id"] is None
    state, message = watched.check(data__train_rows=720)
    assert state == "ALREADY_STARTED"
    assert run["name"] in message
    assert len(watched.runs_of(deployment)) == 1


def test_without_a_champion_every_row_is_new(watched: Watched) -> None:
    """A name that nobody was promoted under, its deployment named by hand."""
    deployment = watched.deploy("first", "deployments/demo/data/train.jsonl")
    state, message = watched.check("retrain/first", name="nobody", data__min_new_rows=300)
    assert state == "RETRAIN_STARTED"
    assert message.startswith("nobody: 300 new rows, at least 300: started retrain/first")
    assert len(watched.runs_of(deployment)) == 1


def test_notify_data_is_on_the_server(watched: Watched) -> None:
    """One event for a model by name; without a server it fails and says so, as for an unknown name."""
    watched.deploy("demo", "deployments/demo/data/train.jsonl")
    unknown = watched.precis("notify-data", "dem")
    assert unknown.returncode == 1
    assert "no deployment is of a model 'dem'" in unknown.stderr
    assert "nearest: 'demo'" in unknown.stderr
    done = watched.precis("notify-data", "demo", "--source", "s3://b/new.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    arrivals = [one for one in watched.events("precis.data.arrived") if one["payload"]["source"]]
    assert arrivals[0]["resource"]["prefect.resource.id"] == "precis.model.demo"
    assert arrivals[0]["payload"] == {"source": "s3://b/new.jsonl"}
    lost = Stack(
        watched.stack.folder.parent / "lost", env={"PREFECT_API_URL": "http://127.0.0.1:9"}
    )
    gone = Watched(lost, {}, watched.warm_precis).precis("notify-data", "demo")
    assert gone.returncode == 1
    assert "was not sent: the Prefect server at http://127.0.0.1:9 says" in gone.stderr
    lost.env = {}
    none = Watched(lost, {}, watched.warm_precis).precis("notify-data", "demo")
    assert none.returncode == 1
    assert "no Prefect server is configured" in none.stderr


def test_an_s3_event_reaches_the_deployments_that_train_on_it(watched: Watched) -> None:
    """One event each for the object's own reader and its folder's; none for others."""
    watched.deploy("exact", "s3://bucket/in/day 1.jsonl")
    watched.deploy("folder", "s3://bucket/in/")
    watched.deploy("sibling", "s3://bucket/inn")
    record = {
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "bucket"}, "object": {"key": "in/day+1.jsonl"}},
    }
    event = json.dumps({"Message": json.dumps({"Records": [record, record]})})
    done = watched.precis("notify-data", "--s3-event", "-", stdin=event)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    arrivals = {
        arrival["payload"]["deployment"]: arrival
        for arrival in watched.events("precis.data.arrived", at_least=3)
        if "deployment" in arrival["payload"]
    }
    assert set(arrivals) == {"retrain/exact", "retrain/folder"}
    for name in ("exact", "folder"):
        arrival = arrivals[f"retrain/{name}"]
        assert arrival["resource"]["prefect.resource.id"] == f"precis.model.{name}"
        assert arrival["payload"]["source"] == "s3://bucket/in/day 1.jsonl"
    other = watched.precis("notify-data", "--s3-event", "-", stdin=event.replace("in/day", "x/day"))
    assert other.returncode == 0
    assert "trains on it; nothing sent" in other.stdout
    broken = watched.precis("notify-data", "--s3-event", "-", stdin="{")
    assert broken.returncode == 1
    assert "not an S3 event notification" in broken.stderr
