"""MLflow as the memory of runs: one MLflow run for each flow run, with its tags, metrics and artifacts.

Only `task.py` files and flows import this; logic never does.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tasks.contracts.credentials import redact
from tasks.contracts.errors import RegistryError
from tasks.processes import workspace
from tasks.tracking import artifacts, connection
from tasks.tracking.deleted import with_way_back

ERROR = "precis.error"  # why a run failed
MAX_TAG_CHARACTERS = 5000
LOGGED_TABLES = "mlflow.loggedArtifacts"
SEALED = "sealed"  # the artifact folder of what a report's reader must not meet: see its README.txt
SCHEDULED = "SCHEDULED"  # MLflow's status of a run that goes on later
_current: ContextVar[Run] = ContextVar("precis_run")


class GoesOnLater(Exception):
    """Ends this process of a run that another one goes on with: its MLflow run is SCHEDULED until then."""


@dataclass
class Run:
    """The MLflow run of this flow run."""

    client: Any
    id: str
    experiment_id: str
    resumed: bool  # whether an earlier try of the same flow run made it
    skipped: list[str] = field(default_factory=list)  # steps whose stored result was taken
    pending_tags: dict[str, str] = field(default_factory=dict)  # sent with the next write
    step_tags: dict[str, str] = field(default_factory=dict)  # of runs already read: step_cache

    def write(
        self,
        *,
        tags: dict[str, str] | None = None,
        metrics: dict[str, float] | None = None,
        params: dict[str, str] | None = None,
        step: int = 0,
    ) -> None:
        """Set tags, log metrics at a step and parameters, in one request (each takes some 0.1 s).

        Pending tags go with it; of the same name, the tag given here counts.
        """
        now = int(time.time() * 1000)
        tags = self.pending_tags | (tags or {})
        self.client.log_batch(
            self.id,
            metrics=[Metric(k, float(v), now, step) for k, v in (metrics or {}).items()],
            params=[Param(*item) for item in (params or {}).items()],
            tags=[RunTag(*item) for item in tags.items()],
        )
        self.pending_tags.clear()

    def add_tags_to_next_write(self, tags: dict[str, str]) -> None:
        """Set tags without a request of their own: with the next write, at the latest at the run's end."""
        self.pending_tags |= tags

    def tag(self, name: str, value: str) -> None:
        """Set a tag of this run."""
        self.write(tags={name: value})

    @functools.cached_property
    def _store(self) -> Any:
        return artifacts.repository_of(self.id)

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
        tables = json.loads(self.client.get_run(self.id).data.tags.get(LOGGED_TABLES, "[]"))
        entry = {"path": f"{folder}/{path.name}", "type": "table"}
        if entry not in tables:
            self.tag(LOGGED_TABLES, json.dumps([*tables, entry]))
        return uri

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Log metrics at a step in one call."""
        self.write(metrics=values, step=step)

    def log_params(self, values: dict[str, str]) -> None:
        """Log parameters; logging the same ones again is harmless."""
        self.write(params=values)


def run_url(run: Run) -> str | None:
    """The run's page in MLflow's UI; None on the embedded store, which has no server."""
    return url_of(run.experiment_id, run.id)


def url_of(experiment_id: str, run_id: str) -> str | None:
    """The same of a run that was only read."""
    uri = re.sub(r"//[^/@]*@", "//", connection.tracking_uri())
    if not uri.startswith(("http://", "https://")):
        return None
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


def current() -> Run:
    """The MLflow run of the flow that is running."""
    return _current.get()


@contextlib.contextmanager
def run_for(
    name: str, flow_run_id: str, tags: dict[str, str], first_try: bool = False
) -> Iterator[Run]:
    """The MLflow run of one flow run: created at its first try, resumed by a retry.

    `first_try`: it is known to be the first, so no earlier run is searched for. Ends FINISHED, FAILED,
    SCHEDULED by GoesOnLater, or KILLED when the flow is cancelled or interrupted. Raises RegistryError
    when MLflow cannot be reached or the experiment was deleted.
    """
    with connection.first_request() as client:
        experiment_id = experiment_of(client, name)
    run_id = None if first_try else _resume(client, experiment_id, flow_run_id, tags)
    resumed = run_id is not None
    if run_id is None:
        own_tags = {"precis.name": name, "precis.flow_run_id": flow_run_id}
        info = client.create_run(experiment_id, tags=own_tags | tags).info
        artifacts.remember_root(info)
        run_id = info.run_id
    run = Run(client, run_id, experiment_id, resumed)
    token = _current.set(run)
    status = "KILLED"
    try:
        yield run
        if run.pending_tags:
            run.write()
        status = "FINISHED"
    except GoesOnLater:
        status = SCHEDULED
        raise
    except Exception as error:
        status = "FAILED"
        told = with_way_back(run, name, error)
        _tag_error(client, run_id, told)
        if told is error:
            raise
        raise told from error
    finally:
        artifacts.forget_old()
        _current.reset(token)
        _terminate(run, name, status)


def _terminate(run: Run, name: str, status: str) -> None:
    """Close the run. Raises RegistryError if that fails and nothing failed before."""
    try:
        if status == SCHEDULED:
            run.client.update_run(run.id, status=status)
        else:
            run.client.set_terminated(run.id, status=status)
    except MlflowException as error:
        if status == "FINISHED":
            raise with_way_back(run, name, error) from error
        logging.getLogger(__name__).warning("the MLflow run could not be closed: %s", error)


def _resume(client: Any, experiment_id: str, flow_run_id: str, tags: dict[str, str]) -> str | None:
    """The id of the run that an earlier try of this flow run made, open again; None without one."""
    of_flow_run = f"tags.`precis.flow_run_id` = '{flow_run_id}'"
    earlier = client.search_runs([experiment_id], of_flow_run, max_results=1)
    if not earlier:
        return None
    run_id = str(earlier[0].info.run_id)
    # First the tags, among them the process that works on it now: an open run whose process is gone
    # would be closed (flows/stale_runs.py).
    for tag, value in tags.items():
        client.set_tag(run_id, tag, value)
    if ERROR in earlier[0].data.tags:
        client.delete_tag(run_id, ERROR)
    client.update_run(run_id, status="RUNNING")
    return run_id


def _tag_error(client: Any, run_id: str, error: Exception) -> None:
    """Store in MLflow why a run failed; if MLflow is what failed, the error itself is still raised."""
    try:
        client.set_tag(run_id, ERROR, redact(str(error))[:MAX_TAG_CHARACTERS])
    except MlflowException as unreachable:
        logging.getLogger(__name__).warning("the failure could not be noted: %s", unreachable)


def experiment_of(client: Any, name: str) -> str:
    """The id of the experiment of this name, created if it does not exist."""
    artifact_location = None
    if client.tracking_uri.startswith("sqlite:"):
        # A store without a server would put artifacts wherever the command happens to run.
        folder = workspace.EMBEDDED_STORE / "artifacts" / name
        artifact_location = folder.absolute().as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:  # another process may create it first
            return str(client.create_experiment(name, artifact_location=artifact_location))
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


def flat(values: dict[str, object], prefix: str = "") -> dict[str, str]:
    """Nested settings as a run's parameters: `training.seed`; those that are None left out."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = str(value)
    return found
