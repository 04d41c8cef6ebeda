"""MLflow as the memory of runs: one run a flow run, its artifacts, and what need not be done twice.

Only `task.py` files and flows import this; logic never does. A step's key is the digest of its
inputs, its part of the recipe and its code; key and result are tags of the run that did the work,
so any machine that reads the same MLflow finds them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tasks.contracts import code_digest, digest
from tasks.contracts.errors import RegistryError
from tasks.contracts.records import from_json, to_json
from tasks.processes import workspace
from tasks.tracking import artifacts, connection, history

T = TypeVar("T")
STEPS = "precis.step."
PAGE = 1  # runs: the newest, as a rule, has what is asked for, and each brings all that it logged
STEP_TAG = STEPS + "{}.{}"  # step and key; the value is the result
ERROR = "precis.error"  # why a run failed
MOST_TAG = 5000  # characters
LOGGED_TABLES = "mlflow.loggedArtifacts"
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
_current: ContextVar[Run] = ContextVar("precis_run")


@dataclass
class Run:
    """The MLflow run of this flow run; `skipped` lists the steps found done before."""

    client: Any
    id: str
    experiment_id: str
    taken_up: bool  # whether an earlier try of the same flow run made it
    skipped: list[str] = field(default_factory=list)
    recalled: dict[str, str] = field(default_factory=dict)  # tags that go with the next write
    seen: dict[str, str] = field(default_factory=dict)  # steps' tags of the runs already read

    def write(
        self,
        *,
        tags: dict[str, str] | None = None,
        metrics: dict[str, float] | None = None,
        params: dict[str, str] | None = None,
        step: int = 0,
    ) -> None:
        """Set tags, log metrics at a step and parameters, in one request (each takes some 0.1 s)."""
        now = int(time.time() * 1000)
        tags = self.recalled | (tags or {})
        self.client.log_batch(
            self.id,
            metrics=[Metric(k, float(v), now, step) for k, v in (metrics or {}).items()],
            params=[Param(*item) for item in (params or {}).items()],
            tags=[RunTag(*item) for item in tags.items()],
        )
        self.recalled.clear()

    def tag(self, name: str, value: str) -> None:
        """Set a tag of this run."""
        self.write(tags={name: value})

    @functools.cached_property
    def _store(self) -> Any:
        return artifacts.store_of(self.id)

    def log_folder(self, folder: Path, name: str) -> str:
        """Store a folder as artifact `name`; returns its `runs:/` URI."""
        uri = f"runs:/{self.id}/{name}"
        artifacts.forget(uri)
        self._store.log_artifacts(str(folder), name)
        return uri

    def log_file(self, path: Path, folder: str = "") -> str:
        """Store a file in artifact folder `folder`; returns its `runs:/` URI."""
        uri = f"runs:/{self.id}/{folder + '/' if folder else ''}{path.name}"
        artifacts.forget(uri)
        self._store.log_artifact(str(path), folder or None)
        return uri

    def log_table(self, path: Path, folder: str) -> str:
        """Store a predictions table where MLflow's UI shows it as one; returns its URI."""
        uri = self.log_file(path, folder)
        # What mlflow.log_table does beside storing: the UI finds tables by this tag.
        known = json.loads(self.client.get_run(self.id).data.tags.get(LOGGED_TABLES, "[]"))
        entry = {"path": f"{folder}/{path.name}", "type": "table"}
        if entry not in known:
            self.tag(LOGGED_TABLES, json.dumps([*known, entry]))
        return uri

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Log metrics at a step in one call."""
        self.write(metrics=values, step=step)

    def log_params(self, values: dict[str, str]) -> None:
        """Log parameters; logging the same ones again is harmless."""
        self.write(params=values)

    def recall(
        self, step: str, key: str, kind: type[T], intact: Callable[[T], bool], shown: str = ""
    ) -> T | None:
        """The result some run recorded for this step and key, if what it refers to is intact.

        `shown`: what the step is called in `skipped`, if not by its name.
        """
        tag = STEP_TAG.format(step, key[:32])
        for recorded in self._recorded(tag):
            result = from_json(kind, recorded)
            if artifacts.intact(result, intact):
                self.skipped.append(shown or step)
                self.recalled[tag] = to_json(result)
                return result
        return None

    def _recorded(self, tag: str) -> Iterator[str]:
        """What runs recorded under a step's tag, as a rule without asking.

        A run has the tags of all steps it did or recalled: whoever did one did most of the others.
        """
        known = self.seen.get(tag)
        if known is not None:
            yield known
        where = f"tags.`{tag}` != ''"
        for found in history.runs(self.client, self.experiment_id, where, PAGE):
            artifacts.know_root(found.info)
            tags = found.data.tags
            self.seen = {k: v for k, v in tags.items() if k.startswith(STEPS)} | self.seen
            if tags[tag] != known:
                yield tags[tag]

    def record(
        self, step: str, key: str, result: Any, metrics: dict[str, float] | None = None
    ) -> None:
        """Remember a step's result, and log what was measured."""
        self.write(tags={STEP_TAG.format(step, key[:32]): to_json(result)}, metrics=metrics)


def step_key(step: str, **inputs: Any) -> str:
    """Digest of a step's inputs, its code and the libraries it leans on."""
    code = code_digest.of_step(step)
    return digest.of_value({"step": step, "code": code, "versions": _versions(), "inputs": inputs})


@functools.cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


def run_url(run: Run) -> str | None:
    """The run's page in MLflow's UI; None on the embedded store, which has no server."""
    uri = re.sub(r"//[^/@]*@", "//", connection.tracking_uri())
    if not uri.startswith(("http://", "https://")):
        return None
    return f"{uri.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.id}"


def current() -> Run:
    """The run of the flow that is under way."""
    return _current.get()


@contextlib.contextmanager
def run_for(
    name: str, flow_run_id: str, tags: dict[str, str], first_try: bool = False
) -> Iterator[Run]:
    """The MLflow run of one flow run: made at its first try, taken up again by a retry.

    `first_try`: it is known to be the first, so there is none to look for. Ends FINISHED, FAILED, or
    KILLED when the flow is cancelled or interrupted.
    """
    with connection.first_asked() as client:
        experiment_id = _experiment(client, name)
    ours = f"tags.`precis.flow_run_id` = '{flow_run_id}'"
    found = [] if first_try else client.search_runs([experiment_id], ours, max_results=1)
    if found:
        run_id = found[0].info.run_id
        for tag, value in tags.items():  # before it is open again: whose it is now
            client.set_tag(run_id, tag, value)
        if ERROR in found[0].data.tags:
            client.delete_tag(run_id, ERROR)
        client.update_run(run_id, status="RUNNING")
    else:
        own = {"precis.name": name, "precis.flow_run_id": flow_run_id}
        info = client.create_run(experiment_id, tags=own | tags).info
        artifacts.know_root(info)
        run_id = info.run_id
    token = _current.set(Run(client, run_id, experiment_id, taken_up=bool(found)))
    status = "KILLED"
    try:
        yield (run := _current.get())
        if run.recalled:
            run.write()
        status = "FINISHED"
    except Exception as error:
        status = "FAILED"
        _note(client, run_id, error)
        raise
    finally:
        artifacts.forget_old()
        client.set_terminated(run_id, status=status)
        _current.reset(token)


def _note(client: Any, run_id: str, error: Exception) -> None:
    """Say in MLflow why a run failed; if MLflow is what failed, the error itself goes on."""
    try:
        client.set_tag(run_id, ERROR, str(error)[:MOST_TAG])
    except MlflowException as unreachable:
        logging.getLogger(__name__).warning("the failure could not be noted: %s", unreachable)


def _experiment(client: Any, name: str) -> str:
    """The experiment of this name, made if need be (by whoever is first)."""
    root = None
    if client.tracking_uri.startswith("sqlite:"):
        # A store without a server would put artifacts wherever the command happens to run.
        root = (workspace.EMBEDDED_STORE / "artifacts" / name).absolute().as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=root))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise RegistryError(
            f"MLflow experiment {name!r} was deleted; restore it (mlflow experiments restore "
            f"--experiment-id {found.experiment_id}) or give the recipe another name"
        )
    return str(found.experiment_id)
