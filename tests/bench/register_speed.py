"""Registering a model against one copy of its bytes, and MLflow's pyfunc.log_model: one table.

    python tests/bench/register_speed.py [--size small | 1b | 7b] [--repeats 3] [--folder FOLDER]

Into a local store, and through a running `mlflow server` with a local artifact destination; in turns,
medians. `copy` is MLflow's own upload of the same files (`log_model_artifacts`). `precis` is logging the
judged package with its digest, and the claim. Not in it: loading the model in a clean process; and the
digest that evaluation checks before (`hash`).
`reads`, `writes`: bytes through this process's system calls over the model's bytes, and the server's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/e2e"), str(ROOT / "tests"), str(Path(__file__).parent)]

import bulk_models  # noqa: E402
import mlflow  # noqa: E402
import psutil  # noqa: E402
from stack import free_port, served  # noqa: E402

from flows.stack import services  # noqa: E402
from tasks.contracts import digest  # noqa: E402
from tasks.contracts.records import ModelRef  # noqa: E402
from tasks.models import find_base, package  # noqa: E402
from tasks.models.prepared_base import BaseFolder  # noqa: E402
from tasks.register import claims  # noqa: E402
from tasks.register import log_model as logging  # noqa: E402
from tasks.tracking import checked_package, connection  # noqa: E402

NAME = "bulk"


class Store:
    """One MLflow store: each way to put the model there, and where it then lies."""

    def __init__(self, folder: Path, model: ModelRef, server: int | None) -> None:
        self.client, self.folder, self.model = connection.connect(), folder, model
        self.stored = folder / "artifacts"
        self.server = psutil.Process(server) if server else None
        location = None if server else (self.stored / NAME).as_uri()
        self.experiment = self.client.create_experiment(NAME, artifact_location=location)
        self.champion: claims.Version | None = None

    def copy(self) -> None:
        """One copy, by MLflow's own hands."""
        logged = self.client.create_logged_model(self.experiment, NAME)
        self.client.log_model_artifacts(logged.model_id, self.model.path)

    def hash(self) -> None:
        """What evaluation checks."""
        checked_package.package(self.model.path, self.model.digest)

    def precis(self) -> None:
        """From a judged package to the champion."""
        run = self.client.create_run(self.experiment).info.run_id
        uri = logging.log_model(
            self.client,
            self.model,
            experiment_id=self.experiment,
            run_id=run,
            name=NAME,
            scratch=self.folder / "scratch",
        )
        tags = {claims.DIGEST: self.model.digest, claims.RUN_ID: run}
        won = claims.succeed(
            self.client, NAME, self.champion, source=uri, tags=tags, description="a model"
        )
        assert won is not None
        self.champion = won

    def pyfunc(self) -> None:
        """MLflow's own way to a registered version."""
        mlflow.set_experiment(NAME)
        with mlflow.start_run():
            mlflow.pyfunc.log_model(
                name=NAME,
                python_model=str(Path(self.model.path) / logging.PYFUNC_FILE),
                artifacts={"package": self.model.path},
                pip_requirements=logging.requirements(Path(self.model.path)),
                registered_model_name=f"{NAME}-pyfunc",
            )

    def moved(self) -> tuple[int, int]:
        """Bytes read and written so far by system calls, the server's among them."""
        processes = [psutil.Process()]
        if self.server is not None:
            processes += [self.server, *self.server.children(recursive=True)]
        counted = [process.io_counters() for process in processes]
        return sum(c.read_chars for c in counted), sum(c.write_chars for c in counted)

    def timed(self, way: Callable[[], None]) -> tuple[float, int, int]:
        """Seconds, bytes read and bytes written of one way; what it stored is removed."""
        os.sync()
        read, written = self.moved()
        begun = time.perf_counter()
        way()
        taken = time.perf_counter() - begun
        after = self.moved()
        shutil.rmtree(self.stored, ignore_errors=True)
        return taken, after[0] - read, after[1] - written


def measure(where: str, store: Store, repeats: int) -> None:
    """Print the lines of one store."""
    size = sum(file.stat().st_size for file in digest.visible_files(Path(store.model.path)))
    ways = {"copy": store.copy, "hash": store.hash, "precis": store.precis}
    ways["pyfunc.log_model"] = store.pyfunc
    found: dict[str, list[tuple[float, int, int]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(store.timed(way))
    copied = statistics.median(seconds for seconds, *_ in found["copy"])
    for name, values in found.items():
        seconds, read, written = (statistics.median(v) for v in zip(*values, strict=True))
        each = " ".join(f"{value[0]:.2f}" for value in values)
        print(
            f"{where:14} {name:17} {seconds:8.2f} {seconds / copied:7.2f} {read / size:6.2f} "
            f"{written / size:7.2f}   {each}"
        )


def main(place: Path, size: str, repeats: int) -> None:
    """Make a package, then both stores in turn; MLflow's tracking URI is the process's."""
    base = bulk_models.make_base(place / "package", size)
    settings = find_base.prepare(bulk_models.recipe(base), BaseFolder.read(base)).settings
    package.add_summarizer(base, settings)
    model = ModelRef(str(base), digest.of_folder(base), "")
    local, remote = place / "local", place / "server"
    for folder in (local, remote):
        folder.mkdir()
    moved = sum(file.stat().st_size for file in digest.visible_files(base)) / 1e9
    print(
        f"{size}: {moved:.2f} GB on {place}; {os.cpu_count()} cores, MLflow {mlflow.__version__}; "
        f"medians of {repeats}; reads and writes over the model's bytes"
    )
    print(f"{'':32} {'seconds':>8} {'x copy':>7} {'reads':>6} {'writes':>7}   all seconds")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{local}/mlflow.db"
    measure("local store", Store(local, model, None), repeats)
    port = free_port()
    words = services.mlflow_server(port, str(remote / "artifacts"))
    env = services.mlflow_environment(f"sqlite:///{remote}/mlflow.db")
    url = f"http://127.0.0.1:{port}"
    with served(words, f"{url}/health", remote, os.environ | services.SETTINGS | env):
        (server,) = psutil.Process().children()
        os.environ["MLFLOW_TRACKING_URI"] = url
        os.environ.pop("MLFLOW_REGISTRY_URI", None)  # set by mlflow with the first store
        measure("mlflow server", Store(remote, model, server.pid), repeats)


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--size", choices=("small", "1b", "7b"), default="small")
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--folder", type=Path)
    options = asked.parse_args()
    if options.folder:
        options.folder.mkdir(parents=True)
        main(options.folder, options.size, options.repeats)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch), options.size, options.repeats)
