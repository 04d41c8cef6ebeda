"""What kills and deletions leave: removed or told by the next run, and only what is precis' own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from flows.outcome import Outcome, promotion_stands
from tasks.contracts.errors import RegistryError
from tasks.processes import workspace
from tasks.register import leftovers
from tasks.register.log_model import DIGEST_TAG
from tasks.tracking import artifacts, connection, mlflow_run

LONG_AGO = time.time() - 2 * leftovers.DAY_SECONDS


@pytest.fixture
def client(home_with_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store, and a temporary directory of its own."""
    folder = home_with_store / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield connection.connect()
    mlflow.set_tracking_uri(None)


def test_pending_models_of_ended_runs_are_deleted_with_their_files(
    client: Any, home_with_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a day; not those of others, of runs that go on, or that are whole."""
    experiment = client.create_experiment("m")
    runs = [client.create_run(experiment).info.run_id for _ in range(2)]
    client.set_terminated(runs[0], "FAILED")
    made = {
        name: client.create_logged_model(experiment, source_run_id=run, tags=tags)
        for name, run, tags in (
            ("killed", runs[0], {DIGEST_TAG: "d"}),
            ("whole", runs[0], {DIGEST_TAG: "d"}),
            ("going on", runs[1], {DIGEST_TAG: "d"}),
            ("another's", runs[0], {}),
        )
    }
    client.finalize_logged_model(made["whole"].model_id, "READY")
    for model in made.values():
        for folder in (
            Path(model.artifact_location.removeprefix("file://")),
            workspace.work_folder() / "served" / model.model_id,
        ):
            folder.mkdir(parents=True)
            (folder / "weights").write_text("w")
            os.utime(folder, (LONG_AGO, LONG_AGO))

    def there() -> set[str]:
        listed = {m.model_id for m in client.search_logged_models([experiment])}
        return {name for name, model in made.items() if model.model_id in listed}

    leftovers.remove(client, experiment)
    assert there() == set(made)  # made today
    monkeypatch.setattr(leftovers, "DAY_SECONDS", -60.0)  # a day later
    leftovers.remove(client, experiment)
    assert there() == {"whole", "going on", "another's"}
    for name, model in made.items():
        stored = Path(model.artifact_location.removeprefix("file://"))
        assert (stored / "weights").exists() == (name != "killed")
        served = workspace.work_folder() / "served" / model.model_id
        assert served.exists() == (name == "going on")


def test_temporary_folders_of_killed_processes_are_removed_after_a_day(
    client: Any, tmp_path: Path
) -> None:
    """A process killed with -9; not one that runs, one of today, another's, or a link."""
    hold = (
        "import tempfile, sys, time; tempfile.tempdir = sys.argv[1]\n"
        "from tasks.processes.workspace import temporary_folder\n"
        "with temporary_folder('check') as folder: print(folder, flush=True); time.sleep(600)"
    )
    words = [sys.executable, "-c", hold, tempfile.gettempdir()]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = [Path(str(p.stdout and p.stdout.readline()).strip()) for p in processes]
    for process in processes[:2]:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed, of_today, running = folders
    verified = workspace.work_folder() / "precis-verify-0a1b2c3d"  # where models fit
    verified.mkdir(parents=True)
    others = [Path(tempfile.mkdtemp(prefix=prefix)) for prefix in ("precisely-", "tmp", "pre-")]
    for name in ("precis-prod-store", "precis-check-out", "precis-backup-ab12_xyz"):
        others.append(Path(tempfile.gettempdir()) / name)
        others[-1].mkdir()
    target = tmp_path / "target"
    target.mkdir()
    link = Path(tempfile.gettempdir()) / "precis-check-link"
    link.symlink_to(target)
    for folder in (killed, running, verified, *others, target):
        os.utime(folder, (LONG_AGO, LONG_AGO))
    experiment = client.create_experiment("m")
    try:
        leftovers.remove(client, experiment)
        now = [f.exists() for f in (killed, verified, of_today, running)]
        assert now == [False, False, True, True]
        assert all(other.exists() for other in (*others, target, link))
        assert killed.parent.stat().st_mode
        assert of_today.stat().st_mode & 0o077 == 0
    finally:
        processes[2].kill()
        processes[2].wait()
        link.unlink()
        for own in (*others, of_today):
            shutil.rmtree(own)


def test_a_killed_download_is_removed_after_a_day(client: Any) -> None:
    """A whole copy stays for its month."""
    fetched = workspace.work_folder() / "fetched"
    for name in (f"{artifacts.PARTIAL}abc", "0123-runs%3A"):
        (fetched / name).mkdir(parents=True)
        os.utime(fetched / name, (LONG_AGO, LONG_AGO))
    artifacts.forget_old()
    assert [path.name for path in fetched.iterdir()] == ["0123-runs%3A"]


def deleted_in_mid_run(client: Any, what: str, when: str) -> None:
    """A run whose experiment, or which itself, is deleted while it is open."""
    with mlflow_run.run_for("m", "flow run", {}) as run:
        if what == "experiment":
            client.delete_experiment(run.experiment_id)
        else:
            client.delete_run(run.id)
        if when == "a write":
            run.tag("a", "b")
        if when == "a wrapped error":
            try:
                run.log_metrics({"a": 1.0})
            except mlflow.MlflowException as error:
                raise RegistryError("promoted, and then") from error


@pytest.mark.parametrize("what", ["experiment", "run"])
@pytest.mark.parametrize("when", ["a write", "the end", "a wrapped error"])
def test_a_deletion_in_mid_run_is_told_with_the_way_back(client: Any, what: str, when: str) -> None:
    """Restored as told, the run's retry goes on in the same MLflow run."""
    with pytest.raises(RegistryError) as caught:
        deleted_in_mid_run(client, what, when)
    message = str(caught.value)
    assert f"{what}" in message
    assert "deleted while" in message
    assert ("promoted, and then" in message) == (when == "a wrapped error")
    command = message.partition("restore it (mlflow ")[2].partition(")")[0].split()
    kind, *_, identity = command
    if kind == "experiments":
        client.restore_experiment(identity)
    else:
        client.restore_run(identity)
    with mlflow_run.run_for("m", "flow run", {}) as again:
        assert again.resumed


def test_what_fails_after_a_promotion_says_that_it_stands() -> None:
    """The version is champion; a refusal has nothing to say."""
    promoted = Outcome("m", None, 2, "PROMOTED m v2", (), "run", "flow run")  # type: ignore[arg-type]
    told = r"PROMOTED m v2: that stands; .* failed: no disk"
    with pytest.raises(RegistryError, match=told), promotion_stands(promoted):
        raise RegistryError("no disk")
    refused = Outcome("m", None, None, "REJECTED", (), "run", "flow run")  # type: ignore[arg-type]
    with pytest.raises(RegistryError, match=r"^no disk$"), promotion_stands(refused):
        raise RegistryError("no disk")
