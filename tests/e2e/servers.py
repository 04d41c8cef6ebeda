"""Real servers, a real worker and the project's own deployments, for tests of whole flows.

Pieces are started one by one, so that a test may kill one and start it again.

Over 250 lines: the pieces of one set of servers.
"""

from __future__ import annotations

import base64
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import once
import psutil
import warm
from stack import ROOT, SMALL, Stack, free_port

from flows.recipe_form import as_recipe
from flows.stack import services
from tasks.contracts.recipe import Recipe
from tasks.processes import supervised

BIN = Path(sys.executable).parent
# A second each: sixty runs queued at once keep SQLite locked for longer than five.
BUSY, BUSY_TRIES = 503, 60
ANSWER_SECONDS = 90  # Prefect's SQLite waits 60 for a lock, and then says busy
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def wait_for(what: Callable[[], Any], seconds: float, why: str) -> Any:
    """What `what` gives once it is true; a test never sleeps for a fixed time."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain: {why}"
        time.sleep(0.2)
    return found


@dataclass
class Servers:
    """Prefect server, MLflow server and worker in a folder; ended, with all below them, by `close`."""

    folder: Path
    extra: dict[str, str] = field(default_factory=dict)
    running: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = Stack(
            self.folder / "client"
        )  # a folder with the demo's files: the worker's home
        self.ports = {"prefect": free_port(), "mlflow": free_port()}
        self.api = f"http://127.0.0.1:{self.ports['prefect']}/api"
        self.mlflow = f"http://127.0.0.1:{self.ports['mlflow']}"
        self.client.env = {
            "PREFECT_API_URL": self.api,
            "MLFLOW_TRACKING_URI": self.mlflow,
            "PRECIS_HOME": str(self.client.folder),
            "PRECIS_DEBOUNCE_SECONDS": "10",
        } | services.SETTINGS | self.extra  # fmt: skip

    def start_from(self, store: Path) -> None:
        """Begin with a copy of the embedded store in `store`: call it before MLflow starts."""
        once.copy_store(store, self.client.folder)
        (self.client.folder / "mlruns/mlflow.db").rename(self.folder / "mlflow.db")

    def words(self, name: str) -> list[str]:
        if name == "prefect":
            return services.prefect_server(self.ports["prefect"])
        if name == "mlflow":
            where = self.extra.get("TEST_ARTIFACTS", str(self.folder / "artifacts"))
            words = services.mlflow_server(self.ports["mlflow"], where)
            words += ["--workers", "1"]  # each takes 7 s of CPU to start
            return [*words, *self.extra.get("TEST_MLFLOW_OPTIONS", "").split()]
        return services.worker("precis")

    def start(self, *names: str) -> None:
        """Start these and wait until they answer."""
        for name in names:
            log = self.folder / f"{name}.log"
            store = self.extra.get("TEST_MLFLOW_STORE", f"sqlite:///{self.folder}/mlflow.db")
            env = self.client.environment() | services.mlflow_environment(store)
            self.running[name] = supervised.start(self.words(name), log, env)
        for name in names:
            wait_for(lambda name=name: self.answers(name), 180, f"{name} does not answer")  # type: ignore[misc]
        if "worker" in names:
            services.limit_pool(self.api, "precis", 2, self.client.env)

    def answers(self, name: str) -> bool:
        log = self.folder / f"{name}.log"
        assert self.running[name].poll() is None, log.read_text()[-3000:]
        urls = {
            "prefect": f"{self.api}/health",
            "mlflow": f"{self.mlflow}/health",
            "worker": f"{self.api}/work_pools/precis",
        }
        return services.answers(urls[name], self.client.env)

    def stop(self, *names: str) -> None:
        """End these as a user would, in order."""
        for name in names:
            supervised.stop(self.running.pop(name))

    def kill(self, name: str) -> None:
        """kill -9 of the process itself, as the kernel's out-of-memory killer does it."""
        wrapper = psutil.Process(self.running.pop(name).pid)
        (process,) = wrapper.children()
        wrapper.kill()  # it would tidy up, which is not what is tried here
        process.kill()
        psutil.wait_procs([wrapper, process], timeout=60)

    def close(self) -> None:
        self.stop(*[name for name in ("worker", "mlflow", "prefect") if name in self.running])

    def __enter__(self) -> Servers:
        with ExitStack() as stack:
            stack.callback(self.close)
            self.start("prefect", "mlflow")
            self.start("worker")
            self.deploy()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def deploy(self, **env: str) -> str:
        """`prefect deploy --all` as README says."""
        file = "deployments/prefect.yaml"
        return self.prefect("--no-prompt", "deploy", "--all", "--prefect-file", file, **env)

    def prefect(self, *words: str, **env: str) -> str:
        """A `prefect` command, from the checkout, without the seconds of imports."""
        script = ["-c", "from prefect.cli import app; app()", *words]
        done = warm.warm_precis()(script, ROOT, self.client.environment() | env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """A request to Prefect's API."""
        auth = self.client.env.get("PREFECT_API_AUTH_STRING", "")
        return _request(f"{self.api}/{path}", body, auth, method)

    def deployment(self, flow: str, name: str = "demo") -> dict[str, Any]:
        deployment: dict[str, Any] = self.ask(f"deployments/name/{flow}/{name}")
        return deployment

    def run(self, flow: str, changes: dict[str, Any] | None = None, **parameters: Any) -> str:
        """Start a run of a deployment with changed settings, by a plain recipe, as clients do; its id."""
        deployment = self.deployment(flow)
        values = deployment["parameters"] | parameters
        if "recipe" in values:
            recipe = Recipe(**as_recipe(values["recipe"]))
            values["recipe"] = recipe.model_dump(mode="json")
        for key, value in (SMALL | (changes or {})).items():
            *groups, last = key.split(".")
            inner = values["recipe"]
            for group in groups:
                inner = inner[group]
            inner[last] = value
        body = {"parameters": values, "state": {"type": "SCHEDULED"}}
        return str(self.ask(f"deployments/{deployment['id']}/create_flow_run", body)["id"])

    def state(self, run_id: str) -> dict[str, Any]:
        """Type, name and message of a run's state."""
        state: dict[str, Any] = self.ask(f"flow_runs/{run_id}")["state"]
        return state

    def wait(self, run_id: str, *types: str, seconds: float = 400) -> dict[str, Any]:
        """The run's state, once it is of one of these types (default: a final one)."""
        wanted = set(types) or FINAL

        def reached() -> dict[str, Any] | None:
            try:
                state = self.state(run_id)
            except (urllib.error.URLError, OSError):  # a test may have taken the server away
                return None
            return state if state["type"] in wanted else None

        found: dict[str, Any] = wait_for(reached, seconds, f"run {run_id}: {wanted}; {self.log()}")
        return found

    def retry(self, run_id: str) -> None:
        """What the UI's Retry does."""
        self.prefect("flow-run", "retry", run_id)

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """All runs of a flow, oldest first."""
        body = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_ASC"}
        runs: list[dict[str, Any]] = self.ask("flow_runs/filter", body)
        return runs

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Events of these names."""
        page = self.ask("events/filter", {"filter": {"event": {"name": list(names)}}})
        events: list[dict[str, Any]] = page["events"]
        return events

    def log(self) -> str:
        path = self.folder / "worker.log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def trainers(self) -> list[psutil.Process]:
        """Live training processes of runs in this folder."""
        return list(_of(self.client.folder, "tasks.processes.step_process"))

    def mlflow_runs(self) -> dict[str, dict[str, Any]]:
        """MLflow's runs by the Prefect flow run they belong to."""
        body = {"experiment_ids": [str(n) for n in range(10)], "max_results": 1000}
        env = self.client.env
        auth = (
            f"{env.get('MLFLOW_TRACKING_USERNAME', '')}:{env.get('MLFLOW_TRACKING_PASSWORD', '')}"
        )
        runs = _request(f"{self.mlflow}/api/2.0/mlflow/runs/search", body, auth).get("runs", [])
        return {
            tag["value"]: run
            for run in runs
            for tag in run["data"]["tags"]
            if tag["key"] == "precis.flow_run_id"
        }


def _request(url: str, body: Any, auth: str, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if auth.strip(":"):
        headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
    request = urllib.request.Request(url, data, headers, method=method)
    for _ in range(BUSY_TRIES):
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                text = answer.read()
            return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            if error.code != BUSY:  # SQLite is locked: Prefect's own client asks again too
                raise AssertionError(f"{url}: {error.code} {error.read()[:1000]!r}") from error
        time.sleep(1)
    raise AssertionError(f"{url}: {BUSY} {BUSY_TRIES} times")


def _of(folder: Path, word: str) -> Iterable[psutil.Process]:
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if word in line and any(str(folder) in part for part in line):
            yield process


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def below(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]
