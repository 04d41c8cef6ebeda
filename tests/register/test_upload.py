"""A model reaches MLflow's store in one pass, and what is stored is what was judged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny

from tasks.contracts import digest
from tasks.contracts.errors import RegistryError
from tasks.contracts.records import ModelRef
from tasks.models import package
from tasks.register import log_model, upload
from tasks.tracking import connection

PARTS = Path("artifacts/package")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose weights are large enough to be linked."""
    folder = tiny.make_tiny_base(tmp_path_factory.mktemp("base") / "base", hidden=256)
    package.add_summarizer(folder, tiny.prepared(folder).settings)
    assert (folder / "model.safetensors").stat().st_size > upload.LINKED_BYTES
    return folder


@pytest.fixture
def model(base: Path, home_with_store: Path) -> ModelRef:
    """The package in the work folder, as a merge leaves it."""
    folder = home_with_store / "work/package"
    shutil.copytree(base, folder)
    return ModelRef(str(folder), digest.of_folder(folder), "")


def log(model: ModelRef, home: Path) -> tuple[Any, Path]:
    """The client, and the folder in which the store keeps the logged model."""
    client = connection.connect()
    location = (home / "store").as_uri()
    found = client.get_experiment_by_name("tiny")
    experiment = (
        found.experiment_id
        if found
        else client.create_experiment("tiny", artifact_location=location)
    )
    run = client.create_run(experiment).info.run_id
    uri = log_model.log_model(
        client,
        model,
        experiment_id=experiment,
        run_id=run,
        name="tiny",
        scratch=home / "work/served",
    )
    logged = client.get_logged_model(uri.removeprefix("models:/"))
    assert logged.status == "READY"
    return client, Path(logged.artifact_location.removeprefix("file://"))


def test_weights_are_linked_and_small_files_copied(model: ModelRef, home: Path) -> None:
    """On one disk: the store holds the very file that was judged, which nobody may write to."""
    _, stored = log(model, home)
    ours, theirs = Path(model.path), stored / PARTS
    assert digest.of_folder(theirs) == model.digest
    assert os.path.samefile(ours / "model.safetensors", theirs / "model.safetensors")
    assert (theirs / "model.safetensors").stat().st_mode & 0o222 == 0
    assert not os.path.samefile(ours / "summarizer.json", theirs / "summarizer.json")
    assert (ours / "summarizer.json").stat().st_mode & 0o200
    assert list((home / "work/served").iterdir()) == []


def test_a_base_s_own_files_are_copied(base: Path, home: Path) -> None:
    """A package that points at a base does not lend the base's file to the store."""
    prepared = tiny.prepared(base)
    model = package.package_base(prepared, prepared.settings, home / "work/package")
    assert (home / "work/package/model.safetensors").is_symlink()
    mode = (base / "model.safetensors").stat().st_mode
    _, stored = log(model, home)
    weights = stored / PARTS / "model.safetensors"
    assert digest.of_folder(stored / PARTS) == model.digest
    assert not weights.is_symlink()
    assert not os.path.samefile(weights, base / "model.safetensors")
    assert (base / "model.safetensors").stat().st_mode == mode


def test_a_changed_package_is_never_ready(model: ModelRef, home: Path) -> None:
    """A byte changed since it was judged: refused, and a retry with the right bytes logs another."""
    weights = Path(model.path) / "model.safetensors"
    right = weights.read_bytes()
    weights.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    with pytest.raises(RegistryError, match="is not what was judged"):
        log(model, home)
    client = connection.connect()
    experiment = client.get_experiment_by_name("tiny").experiment_id
    assert [m.status for m in client.search_logged_models([experiment])] == ["FAILED"]
    weights.unlink()
    weights.write_bytes(right)
    _, stored = log(model, home)
    assert digest.of_folder(stored / PARTS) == model.digest


def test_a_package_s_requirements_are_those_of_its_tokenizer(tmp_path: Path) -> None:
    """One that is only a sentencepiece model is read by that library wherever it is served."""
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    names = {line.partition("==")[0] for line in log_model.requirements(tmp_path)}
    assert {"transformers", "sentencepiece", "protobuf"} <= names
    (tmp_path / "tokenizer.json").write_text("{}")
    names = {line.partition("==")[0] for line in log_model.requirements(tmp_path)}
    assert "sentencepiece" not in names
