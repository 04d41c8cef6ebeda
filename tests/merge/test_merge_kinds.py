"""Every kind of adapter over every quantization trains, merges to what it computed, and evaluates."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numeric
import pytest
import tiny
import torch
from safetensors.torch import load_file

from tasks.evaluate.predict import predict
from tasks.merge import drift, merge
from tasks.models import quantization
from tasks.train import qlora

KINDS, QUANTIZATIONS = ("lora", "dora", "rslora"), ("nf4", "fp4", "int8", "none")
# Each kind and each quantization once; the other combinations take a minute more.
FIRST = {("lora", "none"), ("rslora", "nf4"), ("dora", "fp4"), ("dora", "int8")}
R, ALPHA, DROPOUT = 8, 12, 0.2
TRAINING = {"max_steps": 12, "learning_rate": 2e-2}
LAYER = "model.layers.1.mlp.down_proj"


class Case:
    """A base with rows that are no whole number of 4-bit blocks, and an adapter trained on it."""

    def __init__(self, folder: Path, base: Path, kind: str, quantization: str) -> None:
        self.base, self.kind, self.quantization = base, kind, quantization
        self.rows = tiny.write_rows(folder / "rows.jsonl", tiny.make_rows(24))
        self.recipe = tiny.make_recipe(
            base,
            base={"quantization": quantization},
            adapter={"kind": kind, "r": R, "lora_alpha": ALPHA, "lora_dropout": DROPOUT},
            training=TRAINING,
        )
        values, job = self.recipe.model_dump(mode="json"), str(folder / "job")
        self.prepared = tiny.prepared(base, self.recipe)
        answer = qlora.train(str(self.rows), self.prepared.as_json(), values, job)
        self.metrics, self.adapter = answer["metrics"], Path(answer["adapter"])
        self.package = folder / "package"
        self.merged: dict[str, Any] = merge.merge_and_check(
            self.prepared.as_json(),
            str(self.adapter),
            str(self.rows),
            values,
            str(self.package),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's, of one layer, by their last names."""
        prefix = f"base_model.model.{LAYER}."
        tensors = load_file(self.adapter / "adapter_model.safetensors")
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"), hidden=96)


def combinations() -> Iterator[Any]:
    """All of them; those beyond the first are marked."""
    for pair in itertools.product(KINDS, QUANTIZATIONS):
        marks = () if pair in FIRST else (pytest.mark.full,)
        yield pytest.param(pair, marks=marks, id="-".join(pair))


@pytest.fixture(scope="module", params=combinations())
def case(request: pytest.FixtureRequest, base: Path, tmp_path_factory: Any) -> Case:
    return Case(tmp_path_factory.mktemp("case"), base, *request.param)


def test_it_learns_merges_and_writes(case: Case, tmp_path: Path) -> None:
    """The loss falls, the merged model is the adapter's but for bf16, and summaries are scored."""
    assert case.metrics["last_loss"] < 0.8 * case.metrics["first_loss"]
    assert case.merged["drift"]["kl"] < 1e-4
    assert case.merged["drift"]["top1_agreement"] > 0.98
    untuned = drift.measure(case.prepared, case.adapter, case.base, case.rows, case.recipe)
    assert untuned.kl > 100 * case.merged["drift"]["kl"]
    answer = predict(str(case.package), str(case.rows), str(tmp_path / "table.json"))
    assert answer["rows"] == 24


def test_one_layer_by_the_paper_s_formula(case: Case) -> None:
    """Written out in float64, with nothing of ours but the rounding."""
    stored = load_file(case.base / "model.safetensors")[f"{LAYER}.weight"]
    w, tensors = stored.double(), {n: t.double() for n, t in case.tensors().items()}
    if case.quantization != "none":
        w = quantization.rounded(stored, case.quantization, torch.float32).double()
        assert not torch.equal(w, stored.double())
    s = ALPHA / (math.sqrt(R) if case.kind == "rslora" else R)
    expected = w + s * tensors["lora_B.weight"] @ tensors["lora_A.weight"]
    if case.kind == "dora":
        m = tensors["lora_magnitude_vector"]
        assert (m / w.norm(dim=1) - 1).abs().max() > 1e-3, "magnitudes were not learned"
        expected = m[:, None] * expected / expected.norm(dim=1, keepdim=True)
    else:
        assert set(tensors) == {"lora_A.weight", "lora_B.weight"}
    merged = load_file(case.package / "model.safetensors")[f"{LAYER}.weight"]
    assert merged.dtype == torch.bfloat16
    numeric.assert_rounded_once(merged, expected)


def test_the_adapter_s_files_say_its_kind(case: Case) -> None:
    """In PEFT's own words, which other tools read."""
    config = json.loads((case.adapter / "adapter_config.json").read_text())
    assert config["use_dora"] == (case.kind == "dora")
    assert config["use_rslora"] == (case.kind == "rslora")
