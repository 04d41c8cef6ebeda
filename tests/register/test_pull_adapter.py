"""`precis pull --adapter`: an adapter in PEFT's format and its base, checked, or neither."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import adapter_versions
import pytest
from adapter_versions import base_files, base_names
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from registry import files_of, flip
from test_pull import killed_after

from flows.cli.entry import main
from tasks.contracts import digest
from tasks.contracts.errors import RegistryError
from tasks.register import pull_adapter
from tasks.serving.summarizer import pyfunc

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Any:
    return adapter_versions.store(tmp_path_factory, home)


def test_adapters_of_two_models_share_a_base(
    store: Any, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each in a folder of its own, byte by byte what the store holds; PEFT computes as was judged."""
    [base] = base_names(store)
    assert main(["pull", "lamps", "served", "--adapter"]) == 0
    assert "adapter lamps v2 is in served/lamps-v2: 6 files, " in capsys.readouterr().out
    assert main(["pull", "lights@champion", "served", "--adapter"]) == 0
    assert f"served/{base} holds base {base} already: " in capsys.readouterr().out
    assert sorted(os.listdir("served")) == ["lamps-v2", "lights-v1", base]
    assert digest.of_folder(home / "served" / base) == digest.of_folder(base_files(store))
    _, own = files_of(store, "lamps", "2"), home / "served/lamps-v2"
    stored = files_of(store, "lamps", "2") / pyfunc.PACKAGE
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (own / name).read_bytes() == (stored / "adapter" / name).read_bytes()
    compare_with_peft(home / "served" / base, own, home / "mlruns/made/lamps-2/merged")


def compare_with_peft(base: Path, adapter: Path, merged: Path) -> None:
    """PEFT's logits against the judged model's: they differ by its rounding to 16 bits alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def logits(model: Any) -> Any:
        with torch.inference_mode():
            return model(torch.arange(3, 60)[None]).logits

    kind = AutoModelForCausalLM
    plain = logits(kind.from_pretrained(base, dtype=torch.float32))
    judged = logits(kind.from_pretrained(merged, dtype=torch.float32))
    live = logits(
        PeftModel.from_pretrained(kind.from_pretrained(base, dtype=torch.float32), adapter)
    )
    assert (live - judged).norm() < 0.01 * (plain - judged).norm()


def test_a_killed_pull_goes_on(store: Any, home: Path) -> None:
    """Neither folder has its name before it is whole; what had arrived is not fetched again."""
    [base] = base_names(store)
    folder = home / "served"
    if (child := os.fork()) == 0:
        type(get_artifact_repository(".")).download_artifacts = killed_after(9)
        pull_adapter.pull_adapter(store, "lamps", folder)
        os._exit(0)
    os.waitpid(child, 0)
    assert not (folder / base).exists()
    pulled = pull_adapter.pull_adapter(store, "lamps", folder)
    assert (pulled.adapter.files, pulled.base.kept) == (0, 1)
    assert sorted(os.listdir(folder)) == ["lamps-v2", base]


@pytest.mark.full
@pytest.mark.parametrize("which", ["adapter", "base", "manifest"])
def test_what_was_changed_in_the_store_is_refused(which: str, store: Any, home: Path) -> None:
    [base] = base_names(store)
    model = files_of(store, "lamps", "2")
    flip(
        {
            "adapter": model / pyfunc.PACKAGE / "adapter/adapter_model.safetensors",
            "base": next(base_files(store).glob("*.safetensors")),
            "manifest": model / pyfunc.MANIFEST,
        }[which]
    )
    with pytest.raises(
        RegistryError, match=r"is not what was (judged|registered): .*restore the store"
    ):
        pull_adapter.pull_adapter(store, "lamps", home / "served")
    assert not (home / "served" / base).exists()
    assert (home / "served/lamps-v2").exists() == (which == "base")


@pytest.mark.full
def test_what_is_there_is_left_as_it_is(store: Any, home: Path) -> None:
    """A pulled adapter that changed, or a file in the folder's place."""
    own = pull_adapter.pull_adapter(store, "lamps", home / "served").adapter.folder
    flip(own / "adapter_model.safetensors")
    changed = digest.of_folder(own)
    with pytest.raises(RegistryError, match=r"is not lamps v2: adapter_model.safetensors differ"):
        pull_adapter.pull_adapter(store, "lamps", home / "served")
    assert digest.of_folder(own) == changed
    shutil.rmtree(own)
    own.write_text("mine")
    with pytest.raises(RegistryError, match="is there, and is not lamps v2"):
        pull_adapter.pull_adapter(store, "lamps", home / "served")


def test_a_merged_version_has_no_adapter_to_pull(
    store: Any, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", "lamps/1", "served", "--adapter"]) == 1
    assert "lamps v1 holds the merged model, and its base" in capsys.readouterr().err
    assert os.listdir(home / "served") == []
