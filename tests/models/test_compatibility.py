"""What `precis check` says of a base and an adapter, from headers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import pytest
import shapes
import tiny

from tasks.costs import preflight
from tasks.costs.training_memory import adapter_parameters
from tasks.models import compatibility
from tasks.models.compatibility import Layers
from tasks.models.prepared_base import BaseFolder
from tasks.models.safetensors_headers import tensor_shapes
from tasks.processes import device


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: shapes.make_base(folder / name, name) for name in shapes.SHAPES}


def problems_of(base: Path, targets: Any = "all-linear") -> list[str]:
    return compatibility.problems(
        tiny.make_recipe(base, adapter={"target_modules": targets}), BaseFolder.read(base)
    )


def needs(base: Path, /, **parts: Any) -> preflight.Estimate:
    return preflight.estimate(tiny.make_recipe(base, **parts), BaseFolder.read(base), base)


@pytest.mark.parametrize("model_type", shapes.SHAPES)
def test_every_architecture_s_own_names_are_known(model_type: str, bases: dict[str, Path]) -> None:
    """No problem with its own linear layers; another's are missing, and its own are named."""
    base, own = bases[model_type], sorted(shapes.TARGETS[model_type])
    assert problems_of(base) == problems_of(base, own) == []
    assert problems_of(base, [own[0], "c_attn"]) == [
        f"adapter.target_modules: {base} has no layer c_attn; it has {', '.join(own)}"
    ]


@pytest.mark.parametrize("model_type", ["phi", "qwen2"])
def test_head_and_embeddings_cannot_be_adapted(model_type: str, bases: dict[str, Path]) -> None:
    """Tied or not: found now, not after training."""
    own = ", ".join(sorted(shapes.TARGETS[model_type]))
    problems = problems_of(bases[model_type], ["lm_head", "q_proj", "embed_tokens", "c_attn"])
    assert problems == [
        "adapter.target_modules: lm_head, embed_tokens cannot be adapted, being the head (its loss is "
        f"computed from the weights alone) or an embedding; choose among {own}",
        f"adapter.target_modules: {bases[model_type]} has no layer c_attn; it has {own}",
    ]


def test_bases_that_would_fail_at_the_merge_are_refused_before(tmp_path: Path) -> None:
    """Quantized already, and GPT-2's transposed layers: both at once, with the fix."""
    base = tiny.make_tiny_base(tmp_path)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "gpt2", "quantization_config": {"load_in_4bit": True}}
    (base / "config.json").write_text(json.dumps(config))
    assert problems_of(base) == [
        f"base.model: {base} is quantized already; name the original, and choose base.quantization",
        f"base.model: {base} is a gpt2, whose layers (Conv1D) cannot be merged; choose another base",
    ]


def test_some_weights_are_why_not_sharded(tmp_path: Path) -> None:
    """Nor with DoRA, nor a model type that was not tried: refused before anything is loaded, with the fix."""
    base = tiny.make_tiny_base(tmp_path)
    parts = {"training": {"devices": 2, "base_weights": "sharded"}}
    eight = tiny.make_recipe(base, base={"quantization": "int8"}, **parts)
    [problem] = compatibility.problems(eight, BaseFolder.read(base))
    assert "training.base_weights: sharded: weights in int8" in problem
    assert "choose base.quantization nf4" in problem
    [problem] = compatibility.problems(
        tiny.make_recipe(base, adapter={"kind": "dora"}, **parts), BaseFolder.read(base)
    )
    assert "DoRA reads all weights at its start; choose adapter.kind lora or rslora" in problem
    assert "opt models" in compatibility.why_not_sharded(
        tiny.make_recipe(base, **parts), {"model_type": "opt"}
    )
    assert compatibility.problems(tiny.make_recipe(base, **parts), BaseFolder.read(base)) == []


@pytest.mark.parametrize(
    ("model_type", "packing", "expected"),
    [
        ("olmo2", True, []),
        ("bloom", False, []),
        (
            "bloom",
            True,
            ["training.packing: rows would see each other in a bloom model; set it to false"],
        ),
        (
            "t5",
            False,
            [
                "base.model: transformers has no language model of {}'s type, t5; choose another base"
            ],
        ),
        (
            "none",
            False,
            [
                "base.model: transformers has no language model of {}'s type, none; choose another base"
            ],
        ),
    ],
)
def test_uncommon_architectures(
    model_type: str, packing: bool, expected: list[str], tmp_path: Path
) -> None:
    """Those that would let packed rows see each other are refused; so is what is no language model."""
    base = tiny.make_tiny_base(tmp_path)
    config = json.loads((base / "config.json").read_text()) | {"model_type": model_type}
    (base / "config.json").write_text(json.dumps(config))
    recipe = tiny.make_recipe(base, training={"packing": packing})
    assert compatibility.problems(recipe, BaseFolder.read(base)) == [
        line.format(base) for line in expected
    ]


def test_training_refuses_what_check_refuses(tmp_path: Path, bases: dict[str, Path]) -> None:
    """A run without a check before it learns so at its first step, not at its merge."""
    from tasks.contracts.errors import TrainingError
    from tasks.train import qlora

    base = bases["phi"]
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.make_rows(2))
    recipe = tiny.make_recipe(base, adapter={"target_modules": ["lm_head"]})
    with pytest.raises(TrainingError, match=r"does not fit this base model:\n.*lm_head cannot be"):
        qlora.train_in_this_process(rows, tiny.prepared(base, recipe), recipe, tmp_path / "job")


@pytest.mark.parametrize("model_type", shapes.SHAPES)
def test_adapter_parameters_are_counted_as_peft_makes_them(
    model_type: str, bases: dict[str, Path]
) -> None:
    """Of all layers, of some, and with DoRA's magnitudes: to the number."""
    from peft import LoraConfig, get_peft_model

    base = bases[model_type]
    layers = Layers.of(tensor_shapes(base))
    some = sorted(shapes.TARGETS[model_type])[:2]
    for targets, kind in (("all-linear", "lora"), (some, "rslora"), ("all-linear", "dora")):
        recipe = tiny.make_recipe(base, adapter={"target_modules": targets, "kind": kind, "r": 5})
        config = LoraConfig(
            r=5, target_modules=targets, use_dora=kind == "dora", task_type="CAUSAL_LM"
        )
        made, _ = get_peft_model(
            shapes.make_model(model_type), config
        ).get_nb_trainable_parameters()
        assert adapter_parameters(recipe, layers) == made


@pytest.mark.parametrize("model_type", shapes.SHAPES)
def test_fewer_bits_need_less_memory(model_type: str, bases: dict[str, Path]) -> None:
    """By what the linear layers weigh, which is all that is quantized; the rest stays as it is."""
    base = bases[model_type]
    bytes_of = {
        q: needs(base, base={"quantization": q}).training_bytes for q in ("none", "int8", "nf4")
    }
    sizes = [prod(shape) for shape in Layers.of(tensor_shapes(base)).inner.values()]
    full = 4 if device.compute() == "cpu" else 2
    at_work = full * max(sizes)  # one layer at a time is computed with in full
    saved = {q: bytes_of["none"] - bytes_of[q] + at_work for q in ("int8", "nf4")}
    assert saved["int8"] == pytest.approx(sum(sizes) * (full - 1), rel=0.05)
    assert saved["nf4"] == pytest.approx(sum(sizes) * (full - 0.516), rel=0.01)
    assert needs(base, base={"quantization": "fp4"}).training_bytes == bytes_of["nf4"]
    assert needs(base, adapter={"kind": "dora"}).training_bytes > bytes_of["nf4"]


def test_nothing_heavy_is_imported_for_it() -> None:
    """A check must answer at once."""
    script = (
        "import sys, tasks.models.compatibility, tasks.costs.preflight\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
