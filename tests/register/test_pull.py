"""`precis pull`: a verified copy, whole or not at all, continued after a kill."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from flows.cli.entry import main
from tasks.contracts import digest
from tasks.contracts.errors import RegistryError
from tasks.contracts.records import ModelRef
from tasks.register import claims, log_model, pull
from tasks.tracking import connection


@pytest.fixture
def store(home_with_store: Path) -> Any:
    """A client of a store where the champion of `lamps` is version 1."""
    base = tiny.make_tiny_base(home_with_store / "base")
    linked = tiny.packaged(base, home_with_store / "linked", tiny.prepared(base).settings)
    package = shutil.copytree(linked, home_with_store / "package")
    model = ModelRef(str(package), digest.of_folder(package), "b" * 64)
    client = connection.connect()
    experiment = client.create_experiment("lamps")
    run_id = client.create_run(experiment).info.run_id
    uri = log_model.log_model(
        client, model, experiment_id=experiment, run_id=run_id, name="lamps",
        scratch=home_with_store / "served",
    )  # fmt: skip
    tags = {claims.DIGEST: model.digest, claims.RUN_ID: run_id}
    assert claims.succeed(client, "lamps", None, source=uri, tags=tags, description="first")
    return client


def stored(store: Any) -> Path:
    """The package's folder in the store."""
    model_id = store.get_model_version("lamps", "1").source.removeprefix("models:/")
    location = store.get_logged_model(model_id).artifact_location
    return Path(location.removeprefix("file://")) / "artifacts/package"


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()  # it may be a link to the run's own file
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["lamps", "lamps@champion", "lamps/1"])
def test_a_pull_gives_what_was_registered(
    name: str, store: Any, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """File by file, nothing beside it; pulled again, it says that it is there."""
    (stored(store) / "summarizer/__pycache__").mkdir(exist_ok=True)
    (stored(store) / "summarizer/__pycache__/x.pyc").write_text("not judged")
    assert main(["pull", name, "copies/lamps"]) == 0
    assert "lamps v1 is in copies/lamps: " in capsys.readouterr().out
    folder = home / "copies/lamps"
    assert digest.of_folder(folder) == digest.of_folder(stored(store))
    assert not list(folder.rglob("__pycache__"))
    assert os.listdir(home / "copies") == ["lamps"]
    assert main(["pull", name, "copies/lamps"]) == 0
    assert "copies/lamps holds lamps v1 already: " in capsys.readouterr().out


def killed_after(files: int) -> Callable[..., Any]:
    """In a child process: download so many files, then die as by kill -9."""
    kind: type[ArtifactRepository] = type(get_artifact_repository("."))
    download, count = kind.download_artifacts, [0]

    def limited(self: Any, *arguments: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] > files:
            os.kill(os.getpid(), signal.SIGKILL)
        return download(self, *arguments, **named)

    return limited


def pull_and_die(store: Any, folder: Path, files: int) -> None:
    if (child := os.fork()) == 0:
        type(get_artifact_repository(".")).download_artifacts = killed_after(files)
        pull.pull(store, "lamps", folder)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_killed_pull_goes_on(store: Any, home: Path) -> None:
    """Nothing has the folder's name before all is there; what had arrived is not fetched again."""
    folder = home / "copies/lamps"
    pull_and_die(store, folder, 3)
    assert not folder.exists()
    pulled = pull.pull(store, "lamps", folder)
    total = len(digest.visible_files(stored(store)))
    assert (pulled.kept, pulled.files) == (3, total - 3)
    assert digest.of_folder(folder) == pulled.digest
    assert os.listdir(folder.parent) == ["lamps"]


def test_what_an_interrupted_pull_left_is_checked_too(store: Any, home: Path) -> None:
    """A flipped byte, half a file, or one that does not belong there: fetched again, or removed."""
    folder = home / "copies/lamps"
    for spoil in ("flipped", "half", "foreign"):
        pull_and_die(store, folder, 4)
        [partial] = folder.parent.glob(".lamps.pull-*[0-9a-f]")
        first = digest.visible_files(partial)[0]
        if spoil == "flipped":
            flip(first)
        elif spoil == "half":
            first.write_bytes(first.read_bytes()[:-1])
        else:
            (partial / "foreign.py").write_text("x = 1\n")
        pulled = pull.pull(store, "lamps", folder)
        assert digest.of_folder(folder) == pulled.digest, spoil
        shutil.rmtree(folder)


def test_files_of_the_store_that_were_not_judged_are_refused(store: Any, home: Path) -> None:
    """A flipped byte, a file more or less: nothing is written, and the message says what to do."""
    folder, package = home / "lamps", stored(store)
    (package / "more.py").write_text("x = 1\n")
    with pytest.raises(RegistryError, match=r"is not what was judged: .* restore the store"):
        pull.pull(store, "lamps", folder)
    (package / "more.py").unlink()
    flip(package / "tokenizer.json")
    with pytest.raises(RegistryError, match="is not what was judged"):
        pull.pull(store, "lamps", folder)
    (package / "tokenizer.json").unlink()
    with pytest.raises(RegistryError, match="is not what was judged"):
        pull.pull(store, "lamps", folder)
    assert not folder.exists()
    assert not list(home.glob(".lamps*"))


def test_a_folder_that_holds_something_is_left_as_it_is(store: Any, home: Path) -> None:
    """Own files, another package, a pulled one that changed, a file; an empty folder is filled."""
    folder = home / "mine"
    folder.mkdir()
    pull.pull(store, "lamps", folder)
    flip(folder / "tokenizer.json")
    changed = digest.of_folder(folder)
    with pytest.raises(RegistryError, match="was pulled as lamps v1, and its files have changed"):
        pull.pull(store, "lamps", folder)
    assert digest.of_folder(folder) == changed
    (home / "other").mkdir()
    (home / "other/note.txt").write_text("mine")
    with pytest.raises(RegistryError, match=r"is not empty \(it holds note.txt\)"):
        pull.pull(store, "lamps", home / "other")
    package = shutil.copytree(home / "linked", home / "third")
    (package / "more.txt").write_text("x")
    with pytest.raises(RegistryError, match="holds another package, not lamps v1"):
        pull.pull(store, "lamps", package)
    with pytest.raises(RegistryError, match="is a file"):
        pull.pull(store, "lamps", home / "other/note.txt")
    for broken in ("not JSON", "[1]"):
        (home / "other" / pull.RECORD).write_text(broken)
        with pytest.raises(RegistryError, match="is not empty"):
            pull.pull(store, "lamps", home / "other")


def test_no_such_model_is_told_as_everywhere(
    store: Any, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", "lamp", "x"]) == 1
    assert "no model 'lamp' is registered; nearest: 'lamps'" in capsys.readouterr().err
    assert main(["pull", "lamps/7", "x"]) == 1
    assert "has no version 7; it has: 1" in capsys.readouterr().err
    assert not (home / "x").exists()


def test_one_pull_at_a_time(store: Any, home: Path) -> None:
    with pull.locked(home / "x"), pytest.raises(RegistryError, match="another process is pulling"):
        pull.pull(store, "lamps", home / "x")


def test_nothing_was_ever_registered(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "lamps", "x"]) == 1
    assert "nothing was ever registered" in capsys.readouterr().err
    assert not (home / "mlruns").exists()
