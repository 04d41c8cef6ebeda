"""Common architectures train through the real entry, merge, and load again with plain transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numeric
import pytest
import shapes
import tiny
import torch
from safetensors.torch import load_file

from tasks.merge import drift, merge
from tasks.models import loading, quantization
from tasks.models.compatibility import Layers
from tasks.models.safetensors_headers import tensor_shapes
from tasks.serving.summarizer import Generator
from tasks.train import qlora

TRAINING = {"max_steps": 6, "learning_rate": 2e-2}
# Other kinds and quantizations where layers have biases, and where the head is tied and scores capped.
COMBINED = [("phi", "dora", "int8"), ("gemma2", "rslora", "fp4")]
CASES = [(model_type, "lora", "nf4") for model_type in shapes.SHAPES] + COMBINED
FIRST = [("llama", "lora", "nf4"), *COMBINED]  # three architectures for `make test`


def params() -> Iterator[Any]:
    """All cases; those after the first three are for `make test-all`."""
    for case in CASES:
        marks = () if case in FIRST else pytest.mark.full
        yield pytest.param(case, marks=marks, id="-".join(case))


class Case:
    """A base of one architecture, an adapter on all its linear layers, and the two merged."""

    def __init__(self, folder: Path, model_type: str, kind: str, quantization: str) -> None:
        self.model_type, self.kind, self.quantization = model_type, kind, quantization
        self.base = shapes.make_base(folder / "base", model_type)
        self.rows = tiny.write_rows(folder / "rows.jsonl", tiny.make_rows(16))
        self.recipe = tiny.make_recipe(
            self.base,
            base={"quantization": quantization},
            adapter={"kind": kind},
            training=TRAINING,
        )
        values = self.recipe.model_dump(mode="json")
        self.prepared = tiny.prepared(self.base, self.recipe).as_json()
        answer = qlora.train(str(self.rows), self.prepared, values, str(folder / "job"))
        self.metrics, self.adapter = answer["metrics"], Path(answer["adapter"])
        self.package = folder / "package"
        result = merge.merge_and_check(
            self.prepared, str(self.adapter), str(self.rows), values, str(self.package)
        )
        self.drift = result["drift"]


@pytest.fixture(scope="module", params=params())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"), *request.param)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return tensors


def test_it_learns_on_just_the_linear_layers(case: Case) -> None:
    """all-linear is every linear layer of every block, and not the head; so says `precis check`."""
    assert case.metrics["last_loss"] < case.metrics["first_loss"]
    tensors = load_file(case.adapter / "adapter_model.safetensors")
    adapted = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in tensors}
    assert {name.split(".")[2] for name in adapted} == {"0", "1"}
    assert {name.rpartition(".")[2] for name in adapted} == shapes.TARGETS[case.model_type]
    assert len(adapted) == 2 * len(shapes.TARGETS[case.model_type])
    assert adapted == set(Layers.of(tensor_shapes(case.base)).inner)


def test_merged_it_says_what_base_and_adapter_say(case: Case) -> None:
    """Logits of plain transformers, eager, on the folder, against PEFT on the quantized base."""
    from transformers import AutoModelForCausalLM

    merged, info = AutoModelForCausalLM.from_pretrained(
        case.package, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    live = drift._live_model(case.base, case.adapter, case.recipe)
    live.set_attn_implementation("eager")
    base_model = AutoModelForCausalLM.from_pretrained(case.base, attn_implementation="eager")
    ids = torch.randint(3, 500, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        merged_logits, expected, untuned = (
            model(ids).logits for model in (merged.eval(), live, base_model)
        )
    numeric.assert_close(merged_logits, expected, numeric.MODEL)
    assert (untuned - expected).abs().max() > 0.1
    assert case.drift["kl"] < 1e-6


def test_what_has_no_adapter_is_untouched(case: Case) -> None:
    """Biases, norms, embeddings and the head; a tied head stays tied. The rest is as it was learned."""
    before, after = weights(case.base), weights(case.package)
    assert before.keys() == after.keys()
    linear = Layers.of(tensor_shapes(case.base)).inner
    lora = load_file(case.adapter / "adapter_model.safetensors")
    for name, tensor in after.items():
        module = name.removesuffix(".weight")
        if name == module or module not in linear:
            assert torch.equal(tensor, before[name]), name
            continue
        a, b = (lora[f"base_model.model.{module}.lora_{part}.weight"].double() for part in "AB")
        scale = 32 / (4 if case.kind == "rslora" else 16)
        base = quantization.rounded(before[name], case.quantization, torch.float32)
        expected = base.double() + scale * b @ a
        if case.kind == "dora":
            lengths = lora[f"base_model.model.{module}.lora_magnitude_vector"]
            expected *= (lengths / expected.norm(dim=1))[:, None]
        numeric.assert_close(tensor, expected, numeric.PRODUCTS, name=name)
    biases = [name for name in after if name.endswith(".bias")]
    assert bool(biases) == (case.model_type in {"phi", "qwen2"})
    tied = shapes.SHAPES[case.model_type].get("tie_word_embeddings", False)
    assert ("lm_head.weight" in after) != tied
    model = loading.load_base(case.package, "none", torch.float32)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is embeddings.weight) == tied


def test_it_is_served_with_its_own_attention(case: Case) -> None:
    """The package writes; and a model that caps its scores is not given to sdpa, which does not."""
    generator = Generator(case.package)
    capped = case.model_type == "gemma2"
    assert generator.model.config._attn_implementation == ("eager" if capped else "sdpa")
    assert loading.load_base(case.base, "nf4", torch.float32).config._attn_implementation == (
        generator.model.config._attn_implementation
    )
    rows = tiny.make_rows(3, seed=9)
    written: list[Any] = generator.summarize([row.document for row in rows])
    assert all(summary.output_tokens > 0 for summary in written)
