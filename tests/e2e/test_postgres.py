"""`precis up --postgres`: the main job's own tests, with both servers on PostgreSQL, artifacts on S3."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import warm
from stack import Stack, free_port, up
from test_retrain import *  # noqa: F403 - the same tests, on this module's stack

from flows.stack import postgres, services

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
