"""What precis check says of memory: counted on small models, and sensible for a 16 GB card."""

from __future__ import annotations

import dataclasses
import json
import struct
from math import prod
from pathlib import Path
from typing import Any

import pytest
import shapes
import tiny
import torch

from tasks.contracts.recipe import Recipe
from tasks.contracts.units import GIB
from tasks.costs import preflight, training_memory
from tasks.models import find_base
from tasks.models.prepared_base import BaseFolder

TOKENS = 128


def kept(model: Any) -> int:
    """Bytes that autograd keeps of one forward pass of TOKENS tokens under training's precision."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = tensor  # kept alive, so that no address comes twice
        return tensor

    dtype = next(p.dtype for p in model.parameters() if not p.requires_grad)
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), mixed:
        model(input_ids=torch.zeros(1, TOKENS, dtype=torch.long), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def adapted(kind: str, hidden: int, mlp: int, layers: int, dtype: torch.dtype) -> Any:
    """A random model with LoRA on all linear layers, as training builds it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind,
        vocab_size=32,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "phi"])
def test_a_layer_keeps_what_the_estimate_says(kind: str, dtype: torch.dtype) -> None:
    """Within a third, and not too little by more than a tenth, for narrow and wide MLPs."""
    of_hidden, of_mlp = training_memory.KEPT_BYTES["cpu" if dtype == torch.float32 else "cuda"]
    for hidden, mlp in ((128, 512), (256, 256)):
        three, two = (kept(adapted(kind, hidden, mlp, layers, dtype)) for layers in (3, 2))
        estimated = of_hidden * hidden + of_mlp * mlp
        assert 0.9 * (three - two) / TOKENS < estimated < 1.34 * (three - two) / TOKENS


def headers_of_llama_7b(folder: Path) -> Path:
    """A safetensors file of Llama-2-7B's shapes without its weights: the estimate reads no more."""
    config, tensors = shapes.llama_7b()
    entries, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * prod(shape)
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def estimate(recipe: Recipe, base: Path, work: Path) -> preflight.Estimate:
    return preflight.estimate(recipe, BaseFolder.read(base), work)


def bills(base: Path, **training: Any) -> Recipe:
    checkpointed = {"gradient_checkpointing": True, "per_device_train_batch_size": 1}
    return tiny.make_recipe(
        base,
        training={"max_length": 4096} | checkpointed | training,
        evaluation={"max_new_tokens": 256, "batch_size": 16},
    )


def test_llama_7b_on_a_16_gb_card(tmp_path: Path) -> None:
    """4,096 tokens fit where layers are computed again, not otherwise; doubling them adds what it adds."""
    base = headers_of_llama_7b(tmp_path / "base")
    estimated_card = estimate(bills(base), base, tmp_path)
    assert estimated_card.parameters == 6_738_415_616
    # Measured on an H200, 2 x 1,024 tokens: 5.10 GiB (docs/benchmarks.md), without a context's 0.5.
    measured = bills(base, max_length=1024, per_device_train_batch_size=2)
    estimated = estimate(measured, base, tmp_path).gpu_training_bytes - training_memory.CUDA_BYTES
    assert 5.10 < estimated / GIB < 1.25 * 5.10
    assert 6 < estimated_card.gpu_training_bytes / GIB < 10
    kept_all = estimate(bills(base, gradient_checkpointing=False, memory="none"), base, tmp_path)
    assert kept_all.gpu_training_bytes > preflight.CARD
    longer = estimate(bills(base, max_length=8192), base, tmp_path)
    per_token = (longer.gpu_training_bytes - estimated_card.gpu_training_bytes) / 4096
    assert per_token == pytest.approx((estimated_card.gpu_training_bytes - 5 * GIB) / 4096, rel=0.2)


def test_it_speaks_of_the_card_in_hand(tmp_path: Path) -> None:
    """On a CPU of the card it would fit; on the card of the batch that fits; never of one that cannot."""
    base = headers_of_llama_7b(tmp_path / "base")
    on_cpu = estimate(bills(base), base, tmp_path)
    assert on_cpu.device == "cpu"
    assert any("which fits a 16 GB card" in line for line in on_cpu.lines())
    fp16 = on_cpu.weights_bytes // 2 + training_memory.CUDA_BYTES
    card = dataclasses.replace(
        on_cpu,
        device="cuda",
        memory_bytes=preflight.CARD,
        training_bytes=on_cpu.gpu_training_bytes,
        weights_bytes=fp16,
        row_bytes=on_cpu.row_bytes // 2,
        disk_free_bytes=2**50,
    )
    assert card.problems() == []
    [line] = [line for line in card.lines() if line.startswith("evaluation memory")]
    assert "16 documents of 4096 tokens at once" in line
    # 12.6 GiB of weights leave 1.9 for a document's 2.0 of keys and values, and its work.
    assert fp16 / GIB == pytest.approx(12.55 + 0.5, abs=0.02)
    assert line.endswith("; not even one document that long is sure to fit here")
    larger = dataclasses.replace(card, memory_bytes=24 * GIB)
    [line] = [line for line in larger.lines() if line.startswith("evaluation memory")]
    assert line.endswith("; documents that long need evaluation.batch_size 4 here")
    enough = dataclasses.replace(card, memory_bytes=80 * GIB)
    assert enough.lines()[2].endswith("for 16 documents of 4096 tokens at once")
    small = dataclasses.replace(card, memory_bytes=11 * GIB)
    assert "evaluation loads the merged model's 13.1 GiB and cuda has 11.0" in small.problems()[0]


def test_a_team_s_card_is_spoken_of_as_the_team_would_use_it(tmp_path: Path) -> None:
    """On a machine without GPUs: 13.5 GB of 16-bit weights, whole on one 16 GB card or over two of them."""
    base = headers_of_llama_7b(tmp_path / "base")
    training = {"max_length": 2048, "per_device_train_batch_size": 12}
    for devices, phrase in ((1, "which does not fit a 16 GB card"), (2, "which fits a 16 GB card")):
        recipe = tiny.make_recipe(
            base, base={"quantization": "none"}, training=training | {"devices": devices}
        )
        assert phrase in estimate(recipe, base, tmp_path).lines()[2]


def test_more_devices_are_offered_where_they_would_take_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On GPUs, of what can be sharded; the processes of a CPU each hold everything."""
    base = headers_of_llama_7b(tmp_path / "base")
    for where, kind, offered in (
        ("cuda", "lora", True),
        ("cuda", "dora", False),
        ("cpu", "lora", False),
    ):
        monkeypatch.setattr(preflight.device, "compute", lambda where=where: where)
        monkeypatch.setattr(preflight, "_memory_bytes", lambda: 2 * GIB)
        recipe = tiny.make_recipe(base, adapter={"kind": kind})
        problem = estimate(recipe, base, tmp_path).problems()[0]
        assert problem.startswith("training needs about")
        assert ("shard the base's weights over more training.devices" in problem) is offered


def test_what_an_adapter_takes_in_the_registry_is_told(tmp_path: Path) -> None:
    """The base in the type that training computes in, here float32; of merged models nothing more."""
    base = tiny.make_tiny_base(tmp_path / "base")
    merged = estimate(tiny.make_recipe(base), base, tmp_path)
    adapter = estimate(tiny.make_recipe(base, register={"as": "adapter"}), base, tmp_path)
    plain = {"base": {"quantization": "none"}, "register": {"as": "adapter"}}
    assert adapter.base_bytes == 4 * adapter.parameters
    assert (
        estimate(tiny.make_recipe(base, **plain), base, tmp_path).base_bytes
        == 2 * adapter.parameters
    )
    assert adapter.disk_bytes == merged.disk_bytes + adapter.base_bytes
    assert adapter.lines()[-1].startswith(
        "register.as adapter: a version takes about 0.00 GiB; its base"
    )
    assert adapter.lines()[:-1][:3] == merged.lines()[:3]


def test_the_longest_row_is_what_the_recipe_and_the_base_allow(tmp_path: Path) -> None:
    """Not max_length where the base reads less, nor the base's maximum where the recipe limits it."""
    base = tiny.make_tiny_base(tmp_path / "base", context=96)
    for parts, rows in (
        ({}, 96),
        ({"base": {"context_tokens": 80}}, 80),
        ({"training": {"max_length": 64}}, 64),
    ):
        assert estimate(tiny.make_recipe(base, **parts), base, tmp_path).row_tokens == rows
    scaled = tiny.make_recipe(base, base={"context_tokens": 192, "rope": "dynamic"})
    view = find_base.look_up(scaled.base, tmp_path / "view").folder
    assert view
    with_rope = preflight.estimate(scaled, view, tmp_path)
    assert (with_rope.row_tokens, with_rope.batch_size) == (192, 1)
    unscaled = estimate(tiny.make_recipe(base), base, tmp_path)
    assert with_rope.row_bytes == 2 * unscaled.row_bytes
