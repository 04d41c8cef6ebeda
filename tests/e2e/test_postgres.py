"""`precis up --postgres`: the main job's own tests, with both servers on PostgreSQL, artifacts on S3.

Over 250 lines: the tests of one stack, which takes minutes to make.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest
import serve_load
import served_models
import warm
from serve_load import CORRUPTED, Load, serving
from servers import wait_for
from stack import Stack, free_port, up
from test_retrain import *  # noqa: F403 - the same tests, on this module's stack

from flows.serve.follow import CHANGED, REFUSED
from flows.stack import postgres, services
from tasks.tracking import artifacts, connection
from tasks.tracking.predictions_table import read_table

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]


class ProcessList(threading.Thread):
    """Reads every second what `ps` shows to every user; `found`: command lines with one of the secrets."""

    def __init__(self, secrets: list[str]) -> None:
        super().__init__(daemon=True)
        self.secrets, self.found, self.seen, self.ended = secrets, set(), set(), threading.Event()

    def run(self) -> None:
        while not self.ended.wait(1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_text(errors="replace").replace("\0", " ")
                except OSError:  # it has just ended
                    continue
                self.seen.add(line)
                self.found |= {line for secret in self.secrets if secret in line}


@pytest.fixture(scope="module")
def process_list() -> Iterator[ProcessList]:
    """It reads while the module's stack runs."""
    reads = ProcessList(["postgresql+"])
    reads.start()
    yield reads
    reads.ended.set()
    reads.join()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, process_list: ProcessList) -> Iterator[Stack]:
    """A folder whose runs use the servers of `precis up --postgres`."""
    own = Stack(tmp_path_factory.mktemp("postgres"))
    (own.folder / "prefect/prefect.db").unlink()
    (own.folder / "mlruns/stack").mkdir(parents=True)
    keys = services.s3_keys(own.folder / "mlruns/stack")  # as its first start would make them
    process_list.secrets.extend(keys)
    database = own.folder / "mlruns/stack/postgres"
    with up(own, "--postgres", "--s3-port", str(free_port())):
        yield own
    assert not (database / postgres.URIS).exists()  # it ended in order
    shutil.rmtree(postgres.data_folder(database)[0])


def test_everything_lies_in_postgresql_and_s3(stack: Stack, first: dict[str, Any]) -> None:
    """Runs in both databases, artifacts in the bucket, and no SQLite file anywhere."""
    uris = services.postgres_uris(stack.folder / "mlruns/stack/postgres")
    assert uris is not None
    for name, table in {"prefect": "flow_run", "mlflow": "runs"}.items():
        plain = uris[name].replace("+asyncpg", "").replace("+psycopg2", "")
        with psycopg2.connect(plain) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM {table}")
            counted = cursor.fetchone()
            assert counted is not None
            assert counted[0] >= 1
    bucket = stack.folder / "mlruns/stack/s3/precis/artifacts"
    run_id = first["mlflow_run_id"]
    stored = {path.name for path in bucket.rglob("*") if run_id in path.parts}
    assert {"decision.json", "report.html", "adapter_model.safetensors"} <= stored
    assert list(bucket.rglob("model.safetensors")), "the registered model is in S3"
    sqlite = [p for p in stack.folder.rglob("*.db") if Path("deployments") not in p.parents]
    assert not [p for p in sqlite if p.name in ("mlflow.db", "prefect.db") and p.stat().st_size]


def test_no_secret_stood_in_the_process_list(
    stack: Stack, first: dict[str, Any], process_list: ProcessList
) -> None:
    """Neither the S3 key nor a database's address, from the stack's start to the end of a run."""
    assert process_list.is_alive()
    for program in (
        "flows.stack.prefect_server",
        "mlflow server",
        "rclone serve s3",
        "worker start",
    ):
        assert any(program in line for line in process_list.seen), program
    assert not process_list.found


def test_the_champion_is_verified_in_the_store(stack: Stack, first: dict[str, Any]) -> None:
    """Its files in S3, not a copy; an edited file around the package is named, and never asked."""
    found = stack.ask("verify", "demo/1", "--rows", "1")
    assert found["as_judged"], found
    assert "1 stored summaries, written again and equal" in found["versions"]["1"]["checked"]
    [file] = (stack.folder / "mlruns/stack/s3").rglob("artifacts/pyfunc.py")
    text = file.read_text()
    file.write_text(text.replace("summary.text for", "'HACKED!!!!' for"))  # of the same length
    try:
        done = warm.warm_precis()(
            ["verify", "demo/1", "--rows", "0"], stack.folder, stack.environment()
        )
        assert done.returncode == 1
        assert "pyfunc.py was changed; restore it from a backup" in done.stdout
    finally:
        file.write_text(text)


# In place of a verb: dies as by kill -9 after three files.
KILLED_PULL = """
import os, signal, sys
from flows.cli.entry import main
from tasks.tracking import artifacts

repository_of_model = artifacts.repository_of_model

def dying(uri):
    repository, left = repository_of_model(uri), [3]
    download = repository.download_artifacts

    def one(*given, **named):
        left[0] -= 1
        return download(*given, **named) if left[0] >= 0 else os.kill(os.getpid(), signal.SIGKILL)

    repository.download_artifacts = one
    return repository

artifacts.repository_of_model = dying
main(["pull", *sys.argv[1:]])
"""


def precis(stack: Stack, *words: str) -> str:
    """What the command prints."""
    done = warm.warm_precis()([*words], stack.folder, stack.environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_killed_pull_goes_on_and_ask_answers(
    stack: Stack, first: dict[str, Any], client: Any
) -> None:
    """The whole package out of S3; asked from the registry and from the folder, the stored summary."""
    warm.warm_precis()(["-c", KILLED_PULL, "demo", "pulled"], stack.folder, stack.environment())
    assert not (stack.folder / "pulled").exists()
    assert ", 3 of them by an earlier pull, " in precis(stack, "pull", "demo", "pulled")
    gate = artifacts.fetch(f"runs:/{first['mlflow_run_id']}/gate")
    row = read_table(gate / "challenger.json")[0]
    for model in ("demo", "./pulled"):
        assert precis(stack, "ask", model, str(row.document)) == f"{row.text}\n"


def test_its_page_and_where_it_came_from(
    stack: Stack, first: dict[str, Any], weaker: dict[str, Any], client: Any
) -> None:
    """Lineage both ways, and the page as a file and as it is kept: versions and refusals, read in S3."""
    made = stack.ask("lineage", "demo")
    assert (made["version"], made["trained_by_run"]) == (1, first["mlflow_run_id"])
    assert [data["train_rows"] for data in made["datasets"]] == [300]
    rows = artifacts.fetch(f"runs:/{weaker['mlflow_run_id']}/dataset/train.jsonl").read_text()
    ids = [json.loads(line)["id"] for line in rows.splitlines()]
    learned = [stack.ask("who-learned", one)["learners"] for one in ids[:3]]
    assert {one["run_id"] for found in learned for one in found} >= {weaker["mlflow_run_id"]}
    (version,) = {one["version"] for found in learned for one in found if one["version"]}
    assert version == 1
    precis(stack, "page", "demo", "--out", "page.html")
    description = client.get_registered_model("demo").description
    kept = description.partition("`runs:/")[2].partition("`")[0]
    for page in (stack.folder / "page.html", artifacts.fetch(f"runs:/{kept}")):
        html = page.read_text()
        assert "version 1, champion since" in html
        assert weaker["mlflow_run_id"][:8] in html


def test_serve_follows_the_champion_under_load(
    stack: Stack, tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pulled out of S3: a promotion, a version whose weights were changed in the bucket, and back."""
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    store = connection.connect()
    stored = {n: served_models.register_tiny(store, tmp_path, n) for n in (1, 2, CORRUPTED)}
    served_models.promote(store, 1)

    def in_bucket(store: Any, number: int) -> Path:
        source = store.get_model_version(served_models.NAME, str(number)).source
        model_id = source.removeprefix("models:/")
        (found,) = (stack.folder / "mlruns/stack/s3").rglob(
            f"{model_id}/artifacts/artifacts/package"
        )
        return found

    with serving(tmp_path, "--engine", "transformers") as command:
        load = Load(command.url, stored, clients=8, at_least=200)
        serve_load.run(store, command, load, (2, CORRUPTED, 1), in_bucket)
        assert {outcome for outcome, _ in load.done} == {"right"}, load.done
        assert {number for _, number in load.done} == {1, 2}, load.done
        (refused,) = command.wait(lambda health: True)["refused"]
        assert "v3 is not what was judged" in refused["reason"]
    # Prefect stores an event some time after it was sent.
    expected = {CHANGED: [1, 1, 2], REFUSED: [CORRUPTED]}
    wait_for(
        lambda: {name: _told_versions(stack, name) for name in expected} == expected,
        60,
        "Prefect knows of other events",
    )


def _told_versions(stack: Stack, event: str) -> list[int]:
    """The versions that Prefect was told of by an event of this name."""
    wanted = {"filter": {"event": {"name": [event]}}}
    answer = httpx.post(f"{stack.env['PREFECT_API_URL']}/events/filter", json=wanted, timeout=60)
    return sorted(each["payload"]["version"] for each in answer.raise_for_status().json()["events"])


def test_prune_removes_a_refused_adapter_from_the_bucket(
    stack: Stack, first: dict[str, Any], weaker: dict[str, Any], client: Any
) -> None:
    """And nothing of the version: it is as judged after that."""
    experiment = client.get_experiment_by_name("demo").experiment_id
    newest = client.create_run(experiment, tags={"precis.flow": "retrain"}).info.run_id
    client.set_terminated(newest)

    def adapters() -> set[str]:
        files = (stack.folder / "mlruns/stack/s3").rglob("adapter_model.safetensors")
        runs = (first["mlflow_run_id"], weaker["mlflow_run_id"])
        return {run for file in files for run in runs if run in file.parts}

    assert len(adapters()) == 2
    assert f"the adapter of run {weaker['mlflow_run_id']}" in precis(
        stack, "prune", "demo", "--keep", "1"
    )
    assert len(adapters()) == 2, "nothing was to be removed yet"
    precis(stack, "prune", "demo", "--keep", "1", "--yes")
    assert adapters() == {first["mlflow_run_id"]}
    assert stack.ask("verify", "demo", "--rows", "0")["as_judged"]
