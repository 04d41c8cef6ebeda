"""A real registry with made-up models, and a client that dies at a write: what tests of claims share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import once
import pytest

from tasks.register import claims, rollback
from tasks.tracking import connection

NAME = "summ"


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class DyingClient:
    """A real client whose process dies just before or just after its n-th write."""

    WRITES = ("create_registered_model", "create_model_version", "set_registered_model_alias",
              "set_model_version_tag", "delete_model_version", "set_tag")  # fmt: skip

    def __init__(self, client: Any, write: int, *, after: bool) -> None:
        self.client, self.left, self.after = client, write, after

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.client, name)
        if name not in self.WRITES:
            return real

        def dying(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Killed
            try:
                return real(*args, **kwargs)
            finally:
                if self.left == 0:
                    raise Killed  # also where MLflow refused

        return dying


def logged(client: Any) -> tuple[str, str]:
    """A run with a logged model; returns (run id, model URI)."""
    experiment = client.get_experiment_by_name("e")
    identity = experiment.experiment_id if experiment else client.create_experiment("e")
    run = client.create_run(identity)
    model = client.create_logged_model(identity, source_run_id=run.info.run_id)
    return run.info.run_id, f"models:/{model.model_id}"


def claim(client: Any, expected: int, run: str, source: str) -> claims.Version | None:
    """As the pipeline claims, for a model judged against version `expected`."""
    tags = {claims.DIGEST: f"digest-{run}", claims.RUN_ID: run}
    known = claims.versions(client, NAME) if expected else []
    judged = next((v for v in known if v.number == expected), None)
    return claims.succeed(client, NAME, judged, source=source, tags=tags, description="d")


def promote(client: Any, expected: int) -> claims.Version | None:
    """A new model succeeds version `expected`."""
    return claim(client, expected, *logged(client))


def back(
    client: Any, to: int | None = None, run: str = "", resumed: bool = False
) -> claims.Version:
    """A rollback as its flow does it, in a run of its own or in `run`; that run ends well."""
    run = run or logged(client)[0]
    plan = rollback.plan(client, NAME, to, run, resumed)
    version = plan.in_effect or rollback.in_effect(client, NAME, plan.target)
    if version is None:
        version = rollback.restore(client, NAME, plan.target, run, expected=plan.expected)
    client.set_terminated(run)
    return version


@contextlib.contextmanager
def champions(count: int, factory: pytest.TempPathFactory, home: Path) -> Iterator[Any]:
    """A client of a store in `home` with v1 to v`count`, each of which was promoted; made once a session."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns/mlflow.db")
            client = connection.connect()
            for expected in range(count):
                promote(client, expected)

    once.copy_store(once.made_once(factory, f"champions-{count}", make), home)
    yield connection.connect()
    mlflow.set_tracking_uri(None)


def alias(client: Any) -> int | None:
    """Where the alias points."""
    found = client.get_registered_model(NAME).aliases.get(claims.ALIAS)
    return int(found) if found else None
