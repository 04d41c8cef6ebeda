"""What cannot be merged is refused with every reason, and leaves nothing behind."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from tasks.contracts.errors import MergeError
from tasks.merge import merge
from tasks.models import find_base
from tasks.models.prepared_base import BaseFolder

MODULES = ("self_attn.q_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In PEFT's format, random: what it says is of no matter here."""
    folder = tmp_path_factory.mktemp("adapter")
    weights = load_file(base / "model.safetensors")
    tensors = {}
    for layer in range(2):
        for name in MODULES:
            rows, columns = weights[f"model.layers.{layer}.{name}.weight"].shape
            prefix = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors[f"{prefix}A.weight"] = torch.randn(4, columns)
            tensors[f"{prefix}B.weight"] = torch.randn(rows, 4)
    save_file(tensors, folder / "adapter_model.safetensors", {"compute_dtype": "float32"})
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj"],
        "base_model_name_or_path": "tiny",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def call(base: Path, adapter: Path, out: Path, /, **parts: Any) -> dict[str, Any]:
    recipe = tiny.make_recipe(base, base={"model": "tiny"}, **parts)
    prepared = find_base.prepare(recipe, BaseFolder.read(base))  # one is too large to digest
    return merge.merge(prepared, adapter, recipe, out)


def refusal(base: Path, adapter: Path, out: Path, /, **parts: Any) -> list[str]:
    with pytest.raises(MergeError) as caught:
        call(base, adapter, out, **parts)
    assert not out.parent.exists() or not list(out.parent.glob(f"{out.name}*"))
    return str(caught.value).splitlines()


def test_the_adapter_fits_its_own_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    """What the refusals below refuse is not refused in itself."""
    assert call(base, adapter, tmp_path / "out")["bytes"] > 0


def test_a_base_of_other_sizes_is_refused_with_every_mismatch(
    adapter: Path, tmp_path: Path
) -> None:
    """Wider, and a layer deeper: four shapes, two missing layers, in one message."""
    other = tiny.make_tiny_base(tmp_path / "other", hidden=96, layers=3)
    lines = refusal(other, adapter, tmp_path / "out")
    layer = "model.layers.{}."
    assert lines == sorted(
        [
            f"{layer}{name}: the adapter is {ours}, the base {theirs}".format(number)
            for name, ours, theirs in (
                ("self_attn.q_proj", "64 x 64", "96 x 96"),
                ("mlp.down_proj", "64 x 128", "96 x 192"),
            )
            for number in (0, 1)
        ]
        + [f"model.layers.2.{name}: the base has it, the adapter does not" for name in MODULES]
    )


def test_a_shallower_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    """Layers that only the adapter has are named."""
    other = tiny.make_tiny_base(tmp_path / "other", layers=1)
    assert refusal(other, adapter, tmp_path / "out") == [
        "model.layers.1.mlp.down_proj: the adapter has it, the base does not",
        "model.layers.1.self_attn.q_proj: the adapter has it, the base does not",
    ]


def test_other_kinds_of_adapter_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    """DoRA's norms, another base's name, a wrong rank, half a pair: all at once."""
    odd = tmp_path / "odd"
    odd.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"use_rslora": True, "alpha_pattern": {"0": 4}}
    config |= {"base_model_name_or_path": "elsewhere", "r": 5}
    (odd / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(adapter / "adapter_model.safetensors")
    first = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    del tensors[f"{first}B.weight"]
    tensors[f"{first}magnitude_vector"] = torch.ones(64)
    save_file(tensors, odd / "adapter_model.safetensors")
    lines = refusal(base, odd, tmp_path / "out")
    assert lines[:3] == [
        "the adapter sets alpha_pattern, which cannot be merged",
        "the adapter's kind is rslora; adapter.kind is lora",
        "the adapter was trained on elsewhere; base.model is tiny",
    ]
    assert f"{first}B.weight: missing in the adapter" in lines
    assert f"{first}magnitude_vector: the adapter has this tensor, rslora does not" in lines
    assert (
        "model.layers.1.mlp.down_proj: rank 4, 4 in the weights, 5 in adapter_config.json" in lines
    )


def test_a_dora_without_its_magnitudes_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Each layer needs them, one a row."""
    odd = tmp_path / "odd"
    odd.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (odd / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    tensors = load_file(adapter / "adapter_model.safetensors")
    first = "base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector"
    save_file(tensors | {first: torch.ones(65)}, odd / "adapter_model.safetensors")
    lines = refusal(base, odd, tmp_path / "out", adapter={"kind": "dora"})
    assert lines == sorted(
        [
            "model.layers.0.mlp.down_proj: 65 magnitudes for 64 rows",
            *(
                f"base_model.model.model.layers.{layer}.{name}.lora_magnitude_vector: "
                "missing in the adapter"
                for layer, name in ((0, MODULES[0]), (1, MODULES[0]), (1, MODULES[1]))
            ),
        ]
    )


def test_a_quantized_base_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Its weights are not those that training quantized."""
    other = tiny.make_tiny_base(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (other / "config.json").write_text(json.dumps(config))
    assert "quantized already; name the original" in refusal(other, adapter, tmp_path / "out")[0]


def test_broken_files_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A missing adapter, and a shard cut short."""
    assert "is no adapter" in refusal(base, tmp_path, tmp_path / "out")[0]
    other = tiny.make_tiny_base(tmp_path / "other")
    shard = other / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    assert "model.safetensors cannot be read" in refusal(other, adapter, tmp_path / "out")[0]


def test_a_disk_too_small_is_refused_before_anything_is_written(
    adapter: Path, tmp_path: Path
) -> None:
    """A base of 8 TiB (a sparse file) would not fit here."""
    other = tiny.make_tiny_base(tmp_path / "other")
    with (other / "tokenizer.model").open("wb") as file:
        file.truncate(8 << 40)
    line = refusal(other, adapter, tmp_path / "out")[0]
    assert line.startswith(f"the merged model needs 8192.00 GiB in {tmp_path}, where ")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes past `size` bytes fail, as they do on a full disk; needs no rights and no mount."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_writing_leaves_nothing(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """The error names place and need; the half-written folder is gone."""
    assert (base / "model.safetensors").stat().st_size > 150_000
    with largest_file(150_000):
        line = refusal(base, adapter, tmp_path / "out")[0]
    assert line.startswith(f"writing the merged model to {tmp_path} failed: ")
    assert "free space there" in line
    assert list(tmp_path.iterdir()) == []


def test_a_drifted_model_is_refused_and_removed(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A tolerance below what rounding costs: no package stays."""
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.make_rows(4))
    recipe = tiny.make_recipe(base, base={"model": "tiny"}, merge={"max_kl": 1e-12})
    with pytest.raises(MergeError, match=r"KL \d\.\de-\d\d nats a token \(merge.max_kl 1e-12\)"):
        merge.merge_and_check(
            tiny.prepared(base, recipe).as_json(),
            str(adapter),
            str(rows),
            recipe.model_dump(mode="json"),
            str(tmp_path / "out"),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
