"""The merged model is the adapter's model, in every kind of base that we merge into.

Over 250 lines: right and wrong merges share one trained adapter.
"""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numeric
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from tasks.contracts import digest
from tasks.contracts.errors import MergeError
from tasks.contracts.recipe import Merge, Recipe
from tasks.merge import drift, merge
from tasks.models import loading, quantization
from tasks.models.weight_files import weight_files
from tasks.serving.summarizer import Generator
from tasks.train import qlora

SHARDS = 3
ATTENTION = {"target_modules": ["q_proj", "v_proj"], "r": 8, "lora_alpha": 16}
TRAINING = {"max_steps": 12, "learning_rate": 2e-2}


class Case:
    """A base, its recipe and an adapter trained on it."""

    def __init__(self, folder: Path, base: Path, /, **parts: Any) -> None:
        self.base, self.rows = base, folder / "rows.jsonl"
        self.recipe: Recipe = tiny.make_recipe(base, training=TRAINING, **parts)
        tiny.write_rows(self.rows, tiny.make_rows(40))
        self.prepared = tiny.prepared(base, self.recipe)
        answer = qlora.train(
            str(self.rows), self.prepared.as_json(), self.dump(), str(folder / "job")
        )
        self.adapter = Path(answer["adapter"])

    def dump(self, **parts: Any) -> dict[str, Any]:
        values = self.recipe.model_dump(mode="json")
        return values | {name: values[name] | part for name, part in parts.items()}

    def merged(self, out: Path, **parts: Any) -> dict[str, Any]:
        return merge.merge_and_check(
            self.prepared.as_json(), str(self.adapter), str(self.rows), self.dump(**parts), str(out)
        )


@pytest.fixture(scope="module")
def nf4(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Three shards, an own head, and an adapter on some of the layers only."""
    folder = tmp_path_factory.mktemp("nf4")
    base = tiny.make_tiny_base(folder / "base", shards=SHARDS, tied=False)
    return Case(folder, base, adapter=ATTENTION)


@pytest.fixture(scope="module")
def unquantized(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """LoRA on all linear layers of an unquantized base with tied embeddings, in one file."""
    folder = tmp_path_factory.mktemp("plain")
    base = tiny.make_tiny_base(folder / "base")
    return Case(folder, base, base={"quantization": "none"})


@pytest.fixture(scope="module")
def result(nf4: Case, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return nf4.merged(tmp_path_factory.mktemp("merged") / "package")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard in weight_files(folder):
        tensors |= load_file(shard)
    return tensors


def test_onto_the_quantized_base_it_equals_the_adapter(result: dict[str, Any]) -> None:
    """Rounding to bf16 is all that lies between them."""
    assert result["drift"]["kl"] < 1e-4
    assert result["drift"]["top1_agreement"] > 0.99
    assert result["drift"]["tokens"] > 100


def test_the_drift_check_sees_a_wrong_merge(nf4: Case, tmp_path: Path) -> None:
    """Onto the original weights, or without the adapter, the KL is many times larger."""
    loose = {"max_kl": 100.0, "min_top1_agreement": 0.0}
    original = nf4.merged(tmp_path / "original", merge={"onto": "original_base"} | loose)
    assert original["drift"]["kl"] > 1e-3
    untuned = drift.measure(nf4.prepared, nf4.adapter, nf4.base, nf4.rows, nf4.recipe)
    assert untuned.kl > 0.1


Tensors = dict[str, torch.Tensor]


def _delta(case: Case, name: str) -> torch.Tensor:
    lora = load_file(case.adapter / "adapter_model.safetensors")
    a, b = (lora[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    return 16 / 8 * (b @ a)


def _changed(case: Case, tensors: Tensors, wanted: str, change: Any) -> Tensors:
    """`tensors` with `change(delta)` added to those whose name holds `wanted`."""
    found = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if wanted in name and module.endswith(("q_proj", "v_proj")):
            tensor = (tensor.float() + change(_delta(case, module))).to(tensor.dtype)  # noqa: PLW2901
        found[name] = tensor
    return found


def _other_base(case: Case, tensors: Tensors, folder: Path) -> Tensors:
    """The same adapter on a base of other weights, as far from ours as two seeds are."""
    other = weights(tiny.make_tiny_base(folder / "other", shards=SHARDS, tied=False, seed=1))
    ours = weights(case.base)
    return {
        n: (t.float() - ours[n].float() + other[n].float()).to(t.dtype) for n, t in tensors.items()
    }


def _other_rounding(case: Case, tensors: Tensors, folder: Path) -> Tensors:
    """Onto weights rounded as FP4, which training did not see."""
    before = weights(case.base)
    found = dict(tensors)
    for name, tensor in before.items():
        if "_proj" in name:
            seen, other = (quantization.rounded(tensor, q, torch.float32) for q in ("nf4", "fp4"))
            found[name] = (tensors[name].float() - seen + other).to(tensor.dtype)
    return found


WRONG = {
    "another base": _other_base,
    "another rounding": _other_rounding,
    "a factor transposed": lambda case, t, _: _changed(case, t, "q_proj", lambda d: d.T - d),
    "a layer missing": lambda case, t, _: _changed(case, t, ".0.", lambda d: -d),
    "a projection missing": lambda case, t, _: _changed(case, t, "v_proj", lambda d: -d),
    "half of alpha": lambda case, t, _: _changed(case, t, "", lambda d: -d / 2),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_merge_is_refused_by_default(
    nf4: Case, result: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    """What is wrong with it moves predictions by more than rounding does."""
    wrong = tmp_path / "package"
    shutil.copytree(result["path"], wrong)
    changed = WRONG[kind](nf4, weights(wrong), tmp_path)
    for file in weight_files(wrong):
        save_file({name: changed[name] for name in load_file(file)}, file, {"format": "pt"})
    measured = drift.measure(nf4.prepared, nf4.adapter, wrong, nf4.rows, nf4.recipe)
    with pytest.raises(MergeError, match="drifted from its adapter"):
        drift.refuse(measured, Merge())


def test_memory_holds_one_model_at_a_time(
    nf4: Case, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live model is gone when the merged one is loaded: together they pass a 16 GB card."""
    live_model, merged_model, live = drift._live_model, drift._merged_model, []

    def watched(*arguments: Any) -> Any:
        model = live_model(*arguments)
        live.extend(weakref.ref(module) for module in model.modules())
        return model

    def loaded(folder: Path) -> Any:
        assert not [ref for ref in live if ref() is not None]
        return merged_model(folder)

    monkeypatch.setattr(drift, "_live_model", watched)
    monkeypatch.setattr(drift, "_merged_model", loaded)
    gc.disable()
    try:
        drift.measure(nf4.prepared, nf4.adapter, Path(result["path"]), nf4.rows, nf4.recipe)
    finally:
        gc.enable()
    assert live


def test_unquantized_it_equals_the_adapter_too(unquantized: Case, tmp_path: Path) -> None:
    """Plain LoRA is merged onto the weights it was trained on, whatever merge.onto says."""
    result = unquantized.merged(tmp_path / "package")
    assert result["drift"]["kl"] < 1e-4
    config = json.loads((tmp_path / "package" / "config.json").read_text())
    assert config["tie_word_embeddings"]
    assert set(weights(tmp_path / "package")) == set(weights(unquantized.base))


def test_every_quantized_layer_is_stored_as_training_saw_it(
    nf4: Case, result: dict[str, Any]
) -> None:
    """Layers without an adapter are rounded as well; head, embeddings and norms are untouched."""
    before, after = weights(nf4.base), weights(Path(result["path"]))
    live = loading.load_base(nf4.base, "nf4", torch.float32).dequantize()
    seen = {f"{name}.weight": m.weight for name, m in live.named_modules() if hasattr(m, "weight")}
    counts = {"rounded": 0, "untouched": 0, "adapted": 0}
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype == torch.bfloat16
        if "q_proj" in name or "v_proj" in name:
            counts["adapted"] += 1
            assert not torch.equal(tensor, seen[name].bfloat16())
        elif "proj" in name:
            counts["rounded"] += 1
            assert torch.equal(tensor, seen[name].bfloat16())
            assert not torch.equal(tensor, before[name])
        else:
            counts["untouched"] += 1
            assert torch.equal(tensor, before[name])
    assert counts == {"rounded": 10, "untouched": 7, "adapted": 4}


def test_the_delta_is_scale_times_b_a_in_float32(nf4: Case, result: dict[str, Any]) -> None:
    """W + alpha / r * B A, rounded once to bf16; the reference is in float64."""
    name = "model.layers.1.self_attn.v_proj"
    lora = load_file(nf4.adapter / "adapter_model.safetensors")
    a, b = (lora[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    base = quantization.rounded(weights(nf4.base)[f"{name}.weight"], "nf4", torch.float32)
    stored = weights(Path(result["path"]))[f"{name}.weight"]
    numeric.assert_rounded_once(stored, base.double() + 16 / 8 * (b @ a))


def test_it_is_a_package_with_the_base_s_files(nf4: Case, result: dict[str, Any]) -> None:
    """The same shards, index and tokenizer; nothing of quantization; our code, and engines' files."""
    folder = Path(result["path"])
    names = {path.name for path in folder.iterdir()}
    ours = {"summarizer.json", "summarizer", "README.md", "chat_template.jinja"}
    assert names == {p.name for p in nf4.base.iterdir()} | ours
    assert len(list(folder.glob("*.safetensors"))) == SHARDS
    for name in ("tokenizer.json", "model.safetensors.index.json"):
        assert (folder / name).read_bytes() == (nf4.base / name).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config == json.loads((nf4.base / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert result["digest"] == digest.of_folder(folder)
    assert result["bytes"] == sum(path.stat().st_size for path in digest.visible_files(folder))
    modes = {path.stat().st_mode & 0o777 for path in digest.visible_files(folder)}
    assert len(modes) == 1, "weights are readable by whom the rest is readable by"


def test_it_loads_and_writes(result: dict[str, Any]) -> None:
    """transformers takes it as it is, without warnings about weights; the Generator serves it."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(result["path"], output_loading_info=True)
    assert model.dtype == torch.bfloat16
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    written = Generator(Path(result["path"])).summarize([tiny.make_rows(1)[0].document])
    assert written[0].output_tokens > 0


def test_merged_twice_it_has_the_same_bytes(
    nf4: Case, result: dict[str, Any], tmp_path: Path
) -> None:
    """Also over what another merge left there."""
    out = tmp_path / "package"
    (tmp_path / "package.partial").mkdir()
    out.mkdir()
    (out / "old.txt").write_text("left over")
    rows_digest = digest.of_file(nf4.rows)
    merged = merge.merge(nf4.prepared, nf4.adapter, nf4.recipe, out, rows_digest)
    assert merged["digest"] == result["digest"]
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
