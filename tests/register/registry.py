"""A real registry with made-up models, and a client that dies at a write: what tests of claims share."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import once
import pytest
import tiny

from tasks.contracts import digest
from tasks.contracts.records import ModelRef
from tasks.register import claims, log_model, rollback
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


def lamps(factory: pytest.TempPathFactory, home: Path) -> Any:
    """A client of a store in `home` where `lamps` v1, a tiny base's package, is champion; made once."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns/mlflow.db")
            patch.chdir(folder)
            client = connection.connect()
            base = tiny.make_tiny_base(folder / "base")
            linked = tiny.packaged(base, folder / "linked", tiny.prepared(base).settings)
            package = shutil.copytree(linked, folder / "package")
            model = ModelRef(str(package), digest.of_folder(package), "b" * 64)
            location = (folder / "mlruns/artifacts/lamps").as_uri()
            experiment = client.create_experiment("lamps", artifact_location=location)
            run_id = client.create_run(experiment).info.run_id
            uri = log_model.log_model(
                client, model, experiment_id=experiment, run_id=run_id, name="lamps",
                scratch=folder / "served",
            )  # fmt: skip
            tags = {claims.DIGEST: model.digest, claims.RUN_ID: run_id}
            tags |= log_model.served_digest(client, uri)
            assert claims.succeed(client, "lamps", None, source=uri, tags=tags, description="first")

    once.copy_store(once.made_once(factory, "lamps", make), home)
    return connection.connect()


def files_of(client: Any, name: str, version: str = "1") -> Path:
    """The folder of a version's logged model in a local store."""
    model_id = client.get_model_version(name, version).source.removeprefix("models:/")
    return Path(client.get_logged_model(model_id).artifact_location.removeprefix("file://"))


def flip(file: Path) -> None:
    """Change one bit in the middle of a file; not of those that it is linked to."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    write(file, bytes(data))


def write(file: Path, content: bytes) -> None:
    """Put content in place of a file, as a new one: it may be a link to the run's own file."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)
