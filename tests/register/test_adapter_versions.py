"""`register.as: adapter`: adapter and base give the judged model bit for bit, to every reader, or nothing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import adapter_versions
import mlflow
import pytest
from adapter_versions import base_files, base_names, digest_of
from registry import files_of, flip

from flows.cli.entry import main
from flows.lineage import lineage
from flows.verify import verify_model
from tasks.contracts import digest
from tasks.contracts.errors import RegistryError
from tasks.register import rollback
from tasks.register.task import package_of
from tasks.serving.summarizer import Generator, pyfunc

pytestmark = pytest.mark.usefixtures("one_thread")
DOCUMENT = "Anna: Hello Ben, I am looking for the old map."


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Any:
    return adapter_versions.store(tmp_path_factory, home)


def test_one_base_serves_all_adapters(store: Any) -> None:
    """Stored once, under a name that has its digest; versions name it, and hold no weights of their own."""
    [name] = base_names(store)
    versions = [store.get_model_version("lamps", "2"), store.get_model_version("lights", "1")]
    assert {version.tags["precis.base"] for version in versions} == {name}
    [full] = {version.tags["precis.base_digest"] for version in versions}
    assert name == f"precis-base-{full[:16]}"
    assert lineage("lights").as_dict()["added_to"] == {"name": name, "digest": full}
    assert f"added to    {name}, digest {full[:16]}..." in lineage("lights").as_text()
    assert "precis.base" not in store.get_model_version("lamps", "1").tags
    package = files_of(store, "lamps", "2") / pyfunc.PACKAGE
    assert [path.name for path in package.rglob("*.safetensors")] == ["adapter_model.safetensors"]


def test_every_reader_gets_the_judged_model(store: Any, home: Path) -> None:
    """pyfunc, the package of `precis ask` and of evaluation, and a pull: one digest, one text."""
    judged = digest_of(home, "lamps/2")
    package, _ = package_of(store, "lamps")
    assert digest.of_folder(package) == judged
    assert package_of(store, "lamps")[0] == package  # kept
    assert main(["pull", "lamps", "copy"]) == 0
    assert digest.of_folder(home / "copy") == judged
    merged = home / "mlruns/made/lamps-2/merged"
    [text] = [summary.text for summary in Generator(merged, "cpu").summarize([DOCUMENT])]
    assert mlflow.pyfunc.load_model("models:/lamps@champion").predict([DOCUMENT]) == [text]
    assert main(["pull", "lamps", "copy"]) == 0  # is there
    assert not list(home.glob(".copy*"))


@pytest.mark.full
def test_a_kept_model_that_changed_is_made_again(store: Any, home: Path) -> None:
    package, _ = package_of(store, "lamps")
    flip(next(package.glob("*.safetensors")))
    assert digest.of_folder(package_of(store, "lamps")[0]) == digest_of(home, "lamps/2")


CHANGES = {
    "the base's weights": (
        lambda base, _: flip(next(base.glob("*.safetensors"))), r"safetensors was changed",
    ),
    "a file of the base gone": (lambda base, _: (base / "config.json").unlink(), r"config.json is missing"),
    "a file more in the base": (
        lambda base, _: (base / "adapter_config.json").write_text("{}"), r"adapter_config.json was added",
    ),
    "the base gone": (lambda base, _: shutil.rmtree(base), r"is missing|is gone"),
    "the adapter": (
        lambda _, model: flip(model / pyfunc.PACKAGE / "adapter/adapter_model.safetensors"),
        r"adapter_model.safetensors was changed",
    ),
    "which base it names": (
        lambda _, model: flip(model / pyfunc.PACKAGE / "adapter.json"), r"adapter.json was changed",
    ),
}  # fmt: skip


FEW = ("the base's weights", "the adapter")  # the others in `make test-all`


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(*of, id=name, marks=() if name in FEW else pytest.mark.full)
        for name, of in CHANGES.items()
    ],
)
def test_what_was_replaced_is_refused_by_all(
    change: Any, says: str, store: Any, home: Path
) -> None:
    """In words, by load, ask, pull and verify; nothing is written."""
    change(base_files(store), files_of(store, "lamps", "2"))
    with pytest.raises(RuntimeError, match=says):
        mlflow.pyfunc.load_model("models:/lamps@champion")
    with pytest.raises(RegistryError, match=says):
        package_of(store, "lamps")
    assert main(["pull", "lamps", "copy"]) == 1
    assert not (home / "copy").exists()
    found = verify_model("lamps", 0, every=False)
    assert any(re.search(says, line) for line in found.versions[2].differences), found.as_text()


@pytest.mark.full
def test_another_base_in_its_place_is_refused(store: Any, home: Path) -> None:
    """A base that is whole in itself, but not the one that the adapter was judged on."""
    from safetensors.torch import load_file, save_file

    shard = next(base_files(store).glob("*.safetensors"))
    tensors = {name: tensor * 1.01 for name, tensor in load_file(shard).items()}
    shard.chmod(0o644)
    save_file(tensors, shard, {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"the base precis-base-\w+ .* is not the one"):
        mlflow.pyfunc.load_model("models:/lamps@champion")


def test_without_a_registry_it_says_what_it_lacks(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = files_of(store, "lamps", "2")
    monkeypatch.setattr(mlflow, "is_tracking_uri_set", lambda: False)
    with pytest.raises(RuntimeError, match=r"this package is an adapter.*set MLFLOW_TRACKING_URI"):
        mlflow.pyfunc.load_model(str(model))


@pytest.mark.full
def test_a_base_tag_that_was_edited_is_named(store: Any) -> None:
    store.set_model_version_tag("lamps", "2", "precis.base_digest", "0" * 64)
    found = verify_model("lamps/2", 0, every=False)
    assert any("its tag precis.base_digest holds '0000" in d for d in found.versions[2].differences)


@pytest.mark.full
def test_adapters_and_merged_models_succeed_each_other(store: Any, home: Path) -> None:
    """Promotions in both directions are there already; a rollback to an adapter names its base too."""
    run = store.create_run(store.get_experiment_by_name("lamps").experiment_id).info.run_id
    for to in (1, 2):
        plan = rollback.plan(store, "lamps", to, run, False)
        run = store.create_run(store.get_experiment_by_name("lamps").experiment_id).info.run_id
        version = rollback.restore(store, "lamps", plan.target, run, expected=plan.expected)
        assert digest.of_folder(package_of(store, "lamps")[0]) == digest_of(home, f"lamps/{to}")
    assert version.base == base_names(store)[0]
    found = verify_model("lamps", 0, every=False).versions[version.number]
    assert any("the adapter's base" in line for line in found.checked), found


@pytest.mark.full
def test_prune_leaves_the_base_alone(store: Any, home: Path) -> None:
    """Whatever is pruned, of a model or of the bases' own experiment: all versions stay whole."""
    for name in ("lamps", "lights", "precis-bases"):
        assert main(["prune", name, "--keep", "1", "--yes"]) == 0
    for reference in ("lamps/1", "lamps/2", "lights/1"):
        package, _ = package_of(store, reference)
        assert digest.of_folder(package) == digest_of(home, reference)
