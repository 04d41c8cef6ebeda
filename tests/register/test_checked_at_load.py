"""MLflow's pyfunc and precis serve what was registered: each file, this check's own included, or nothing."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import py_compile
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from registry import files_of, flip, lamps, write

from tasks.contracts.errors import RegistryError
from tasks.register import lookup
from tasks.register.task import package_of
from tasks.serving.summarizer import pyfunc
from tasks.tracking import checked_package

pytestmark = pytest.mark.usefixtures("one_thread")
DOCUMENT = "Ann: Where is the lamp?"
CHAMPION = "models:/lamps@champion"


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Any:
    return lamps(tmp_path_factory, home)


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        text = (model / name).read_text()
        assert old in text
        write(model / name, text.replace(old, new).encode())

    return edit


PACKAGE = pyfunc.PACKAGE
ANSWER = "texts = [summary.text for summary in"
CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped byte in weights": (
        lambda model: flip(model / PACKAGE / "model.safetensors"),
        f"{PACKAGE}/model.safetensors was changed",
    ),
    "outer code": (
        edited("pyfunc.py", ANSWER, "texts = ['HACKED' for summary in"),
        "pyfunc.py was changed",
    ),
    "inner code": (
        edited(f"{PACKAGE}/summarizer/generate.py", "import", "import"[::-1][::-1] + " "),
        f"{PACKAGE}/summarizer/generate.py was changed",
    ),
    "code more": (
        lambda model: write(model / PACKAGE / "summarizer/more.py", b"x = 1"),
        f"{PACKAGE}/summarizer/more.py was added",
    ),
    "code more, by a link to its folder": (
        lambda model: (model / PACKAGE / "summarizer/generate").symlink_to("/usr"),
        f"{PACKAGE}/summarizer/generate was added",
    ),
    "an adapter that transformers would load": (
        lambda model: write(model / PACKAGE / "adapter_config.json", b"{}"),
        f"{PACKAGE}/adapter_config.json was added",
    ),
    "prompt": (
        edited(f"{PACKAGE}/summarizer.json", "{document}", "Lie: {document}"),
        f"{PACKAGE}/summarizer.json was changed",
    ),
    "tokenizer": (
        lambda model: flip(model / PACKAGE / "tokenizer.json"),
        f"{PACKAGE}/tokenizer.json was changed",
    ),
    "a file less": (
        lambda model: (model / PACKAGE / "tokenizer_config.json").unlink(),
        f"{PACKAGE}/tokenizer_config.json is missing",
    ),
    "what MLflow runs": (edited("MLmodel", "flavors:", "flavors: "), "MLmodel was changed"),
    "requirements": (lambda model: write(model / "requirements.txt", b"x"), "requirements.txt was"),
    "no manifest": (lambda model: (model / pyfunc.MANIFEST).unlink(), "it has no precis_manifest"),
    "garbage for a manifest": (lambda model: write(model / pyfunc.MANIFEST, b"[1]"), "cannot be read"),
    "a deep manifest": (
        lambda model: write(model / pyfunc.MANIFEST, b"[" * 100_000), "cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_what_was_changed_is_not_served(
    change: Callable[[Path], None], says: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a folder alone, by the champion's name, and by precis: the file is named, and what to do."""
    model = files_of(store, "lamps")
    change(model)
    with pytest.raises(RuntimeError, match=says) as refused:
        mlflow.pyfunc.load_model(CHAMPION)
    assert "precis verify" in str(refused.value)
    with pytest.raises(RegistryError, match=r"is not what was (judged|registered).*[Rr]estore it"):
        package_of(store, "lamps")
    monkeypatch.setattr(mlflow, "is_tracking_uri_set", lambda: False)
    with pytest.raises(RuntimeError, match=says):
        mlflow.pyfunc.load_model(str(model))


def test_a_manifest_that_fits_other_files_is_not_the_registered_one(store: Any) -> None:
    """Outer code and manifest edited together: the version and the logged model are asked."""
    model = files_of(store, "lamps")
    edited("pyfunc.py", ANSWER, "texts = ['HACKED' for summary in")(model)
    pyfunc.write_manifest(model)
    with pytest.raises(RuntimeError, match=r"the one that version 1 of lamps holds"):
        mlflow.pyfunc.load_model(CHAMPION)
    with pytest.raises(RuntimeError, match=r"the one that MLflow's logged model m-\w+ holds"):
        mlflow.pyfunc.load_model(store.get_model_version("lamps", "1").source)
    with pytest.raises(RegistryError, match="MLflow would serve it otherwise"):
        checked_package.package(*_reference(store))


def _reference(store: Any) -> tuple[str, str]:
    model = lookup.resolve(store, "lamps")
    return model.uri, model.digest


def test_what_was_not_changed_is_served(
    store: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked against the registry; where that does not answer, against the manifest, as the log says.

    Without a store nothing is asked, and none is made.
    """
    with caplog.at_level(logging.WARNING, "precis"):
        expected = mlflow.pyfunc.load_model(CHAMPION).predict([DOCUMENT])
        mlflow.pyfunc.load_model(CHAMPION)  # what MLflow added by the first time is no fault
    assert not [record for record in caplog.records if record.name == "precis"]
    folder = Path(shutil.copytree(files_of(store, "lamps"), "copy")).absolute()
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "precis"):
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        mlflow.set_tracking_uri("http://127.0.0.1:9")
        mlflow.set_registry_uri("http://127.0.0.1:9")
        assert mlflow.pyfunc.load_model(str(folder)).predict([DOCUMENT]) == expected
    assert "was checked against its own precis_manifest.json alone" in caplog.text
    mlflow.set_registry_uri(None)
    mlflow.set_tracking_uri(None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    alone = Path("alone")
    alone.mkdir()
    monkeypatch.chdir(alone)
    assert mlflow.pyfunc.load_model(str(folder)).predict([DOCUMENT]) == expected
    assert not list(Path().iterdir())


def test_a_version_of_before_has_no_manifest_and_is_not_refused(store: Any) -> None:
    """Its files around the package are covered by nothing; the package is, as before."""
    model, [uri, judged] = files_of(store, "lamps"), _reference(store)
    (model / pyfunc.MANIFEST).unlink()
    store.delete_logged_model_tag(uri.removeprefix("models:/"), pyfunc.SERVED_DIGEST)
    assert checked_package.package(uri, judged) == model / PACKAGE
    flip(model / PACKAGE / "tokenizer.json")
    with pytest.raises(RegistryError, match="is not what was judged"):
        checked_package.package(uri, judged)


def test_large_files_are_checked_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece counts, their order too; small ones are known before large ones."""
    monkeypatch.setattr(pyfunc, "PIECE_BYTES", 1000)
    monkeypatch.setattr(pyfunc, "READ_BYTES", 300)
    for size in (0, 999, 1000, 1001, 5500):
        (tmp_path / f"{size}.bin").write_bytes(os.urandom(size))
    held = pyfunc.write_manifest(tmp_path)
    assert pyfunc.Check(tmp_path, {"r": held}).finish() == []
    large = tmp_path / "5500.bin"
    data = large.read_bytes()
    for changed in (
        data[:-1], data + b"x", data[:5499] + bytes([data[5499] ^ 1]),
        data[1000:2000] + data[:1000] + data[2000:],
    ):  # fmt: skip
        large.write_bytes(changed)
        check = pyfunc.Check(tmp_path, {"r": held})
        assert check.faults == []
        assert check.finish() == ["5500.bin was changed"]


def test_compiled_code_is_never_run_in_place_of_the_checked_source(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python would take a file of __pycache__ whose size and time are the source's; loading leaves none."""
    package = files_of(store, "lamps") / PACKAGE
    for source in (package / "summarizer").glob("*.py"):
        text = source.read_bytes()
        times = source.stat()
        write(source, b"raise RuntimeError('HACKED')".ljust(len(text)))
        os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
        py_compile.compile(str(source), importlib.util.cache_from_source(str(source)))
        write(source, text)
        os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert mlflow.pyfunc.load_model(CHAMPION).predict([DOCUMENT])
    assert not (package.parent.parent / "__pycache__").exists()
    code = pyfunc.load_code(package)
    assert code.Generator(package, "cpu").summarize([DOCUMENT])


def test_the_manifest_is_of_every_file(store: Any) -> None:
    """All but itself, what MLflow adds, and hidden files; code at the top and in the package."""
    model = files_of(store, "lamps")
    files = json.loads((model / pyfunc.MANIFEST).read_bytes())["files"]
    assert {"MLmodel", "pyfunc.py", f"{PACKAGE}/summarizer/pyfunc.py"} <= set(files)
    assert len(files) == len([p for p in model.rglob("*") if p.is_file()]) - 1
