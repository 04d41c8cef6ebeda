"""Which files hold a base's weights: those that transformers loads, whatever lies beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from transformers.modeling_utils import _get_resolved_checkpoint_files

from tasks.contracts import digest
from tasks.contracts.errors import BaseModelError
from tasks.contracts.recipe import Base
from tasks.merge import merge
from tasks.models import find_base, weight_files
from tasks.models.prepared_base import BaseFolder
from tasks.models.safetensors_headers import parameter_count

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in one file and in shards; both in one folder."""
    folder = tiny.make_tiny_base(tmp_path_factory.mktemp("base") / "both")
    return tiny.make_tiny_base(folder, shards=2)


def copy(name: str, to: str) -> Change:
    return lambda folder: shutil.copyfile(folder / name, folder / to)


def gone(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def text(name: str, content: str = "x") -> Change:
    return lambda folder: (folder / name).write_text(content)


SINGLE, INDEX = weight_files.SINGLE, weight_files.INDEX
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LAYOUTS: dict[str, list[Change]] = {
    "one file beside an index": [],
    "one file": [gone(INDEX, *SHARDS)],
    "shards": [gone(SINGLE)],
    "one file, and Mistral's own": [copy(SINGLE, "consolidated.safetensors")],
    "shards, and PyTorch's": [gone(SINGLE), text("pytorch_model.bin")],
    "shards, and a variant": [gone(SINGLE), copy(SHARDS[0], "model.fp16.safetensors")],
    "shards, and a third that is of no index": [
        gone(SINGLE),
        copy(SHARDS[0], "model-00003-of-00003.safetensors"),
    ],
    "a link that leads nowhere, and shards": [
        gone(SINGLE),
        lambda folder: (folder / SINGLE).symlink_to("gone"),
    ],
    "a folder of that name, and shards": [gone(SINGLE), lambda folder: (folder / SINGLE).mkdir()],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_they_are_the_files_that_transformers_loads(
    layout: str, files: Path, tmp_path: Path
) -> None:
    """And no others are counted, digested, estimated, linked into a package, or copied by a merge."""
    folder = tmp_path / "base"
    shutil.copytree(files, folder)
    for change in LAYOUTS[layout]:
        change(folder)
    resolved, _ = _get_resolved_checkpoint_files(folder, None, None, None, None, False)
    assert resolved is not None
    theirs = sorted(map(Path, resolved))
    assert weight_files.weight_files(folder) == theirs
    assert parameter_count(folder) == parameter_count(files)
    alone = tmp_path / "alone"
    alone.mkdir()
    companions = [path for path in folder.glob("*.json") if path.name != INDEX]
    index = [folder / INDEX] if len(theirs) > 1 else []
    for path in (*theirs, *companions, *index):
        shutil.copyfile(path, alone / path.name)
    recipe = tiny.make_recipe(folder)
    facts = find_base.look_up(recipe.base, tmp_path).facts
    strays = sorted(
        {path.name for path in folder.iterdir() if path.is_file()}
        - {path.name for path in (*theirs, *companions, *index)}
    )
    line = "base: transformers does not load these, so they are left out: "
    assert facts == ([line + ", ".join(strays)] if strays else [])
    prepared = find_base.find_base(recipe)
    assert prepared.digest == digest.of_folder(alone)
    packaged = tiny.packaged(folder, tmp_path / "package", prepared.settings)
    assert parameter_count(packaged) == parameter_count(files)
    assert sorted(packaged.glob("*.safetensors")) == [packaged / path.name for path in theirs]
    assert merge.companion_files(folder) == sorted([*companions, *index])


REFUSED: dict[str, tuple[list[Change], str]] = {
    "shards without an index": (
        [gone(SINGLE, INDEX)],
        f"no shards without their index; fetch {INDEX}",
    ),
    "only Mistral's own": (
        [copy(SINGLE, "consolidated.safetensors"), gone(SINGLE, INDEX, *SHARDS)],
        r"consolidated.safetensors, the format of Mistral's and Meta's own code",
    ),
    "a variant": (
        [copy(SINGLE, "model.fp16.safetensors"), gone(SINGLE, INDEX, *SHARDS)],
        r"a variant \(model.fp16.safetensors\); rename",
    ),
    "another name": (
        [copy(SINGLE, "weights.safetensors"), gone(SINGLE, INDEX, *SHARDS)],
        r"no other name than these: weights.safetensors; rename the file to model.safetensors",
    ),
    "PyTorch's": (
        [gone(SINGLE, INDEX, *SHARDS), text("pytorch_model.bin"), text("model.gguf")],
        r"in PyTorch's .bin format \(model.gguf, pytorch_model.bin\), .* convert it with transformers",
    ),
    "GGUF": (
        [gone(SINGLE, INDEX, *SHARDS), text("tiny.Q4_K_M.gguf")],
        r"in GGUF .*; name the original model",
    ),
    "Flax": (
        [gone(SINGLE, INDEX, *SHARDS), text("flax_model.msgpack")],
        r"in Flax's format \(flax_model.msgpack\)",
    ),
    "TensorFlow": ([gone(SINGLE, INDEX, *SHARDS), text("tf_model.h5")], r"in TensorFlow's format"),
    "ONNX": ([gone(SINGLE, INDEX, *SHARDS), text("model.onnx")], r"in ONNX"),
    "what a trainer leaves": (
        [gone(SINGLE, INDEX, *SHARDS), text("training_args.bin"), text("optimizer.pt")],
        r"no .safetensors weights; save the model",
    ),
    "one folder too high": (
        [
            lambda folder: (folder / "checkpoint-9").mkdir(),
            copy(SINGLE, f"checkpoint-9/{SINGLE}"),
            gone(SINGLE, INDEX, *SHARDS),
        ],
        r"name the folder in it that has them: checkpoint-9",
    ),
    "a shard is gone": ([gone(SINGLE, SHARDS[1])], rf"its index names: {SHARDS[1]}; fetch"),
    "an index that leads outside": (
        [gone(SINGLE), text(INDEX, json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))],
        r"no .safetensors beside it: ../elsewhere.safetensors",
    ),
    "an index without a map": ([gone(SINGLE), text(INDEX, "{}")], r'no "weight_map"'),
    "a map of other types": (
        [gone(SINGLE), text(INDEX, '{"weight_map": {"a": 3}}')],
        r"no .safetensors beside it: 3",
    ),
    "a map that is a list": (
        [gone(SINGLE), text(INDEX, '{"weight_map": ["a"]}')],
        r'no "weight_map"',
    ),
    "an index cut short": ([gone(SINGLE), text(INDEX, '{"weight')], r"is not valid JSON"),
    "an adapter": (
        [
            gone(SINGLE, INDEX, *SHARDS, "config.json"),
            text("adapter_config.json", '{"base_model_name_or_path": "acme/base"}'),
            text("adapter_model.safetensors"),
        ],
        r"is an adapter on acme/base, not a model: name that base in base.model, or merge",
    ),
    "a model and an adapter": (
        [text("adapter_config.json", '{"base_model_name_or_path": "acme/base"}')],
        r"a whole model and an adapter on acme/base .* would load acme/base with the adapter: move",
    ),
    "an adapter without its settings": (
        [gone(SINGLE, INDEX, *SHARDS), text("adapter_model.safetensors")],
        r"an adapter \(adapter_model.safetensors\); name the base",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_would_not_load_is_named(name: str, files: Path, tmp_path: Path) -> None:
    """For what it is, with the way out; by check and by a run."""
    folder = tmp_path / "base"
    shutil.copytree(files, folder)
    changes, message = REFUSED[name]
    for change in changes:
        change(folder)
    with pytest.raises(BaseModelError, match=message):
        find_base.locate(Base(model=str(folder)))
    [problem] = find_base.look_up(Base(model=str(folder)), tmp_path).problems
    assert str(folder) in problem
    assert not problem.count("\n")


def test_of_a_hub_repository_only_these_files_are_wanted(files: Path) -> None:
    """Of one with everything: one file of weights, no shards, nothing of other formats."""
    names = [path.name for path in files.iterdir()]
    names += ["consolidated.safetensors", "pytorch_model.bin", "onnx/model.onnx"]
    wanted = weight_files.wanted_on_hub(names, lambda name: name.endswith(".json"), list)
    assert [name for name in wanted if not name.endswith(".json")] == [SINGLE]
    names.remove(SINGLE)
    index = weight_files.shards_in(json.loads((files / INDEX).read_text()), files / INDEX)
    wanted = weight_files.wanted_on_hub(names, lambda name: name.endswith(".json"), lambda: index)
    assert [name for name in wanted if not name.endswith(".json")] == list(SHARDS)


def test_a_tensor_in_two_shards_is_refused(files: Path, tmp_path: Path) -> None:
    """Which of the two would be loaded depends on their order."""
    folder = tmp_path / "base"
    shutil.copytree(files, folder)
    gone(SINGLE)(folder)
    copy(SHARDS[0], SHARDS[1])(folder)
    with pytest.raises(
        BaseModelError, match=r"00002-of-00002.safetensors and model-00001.* both hold"
    ):
        _ = BaseFolder.read(folder).tensors
