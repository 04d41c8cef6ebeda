"""The memory model, against what was measured; and the choice that is made by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.contracts.units import GIB
from tasks.costs import memory_plan
from tasks.costs.memory_plan import Plan

LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
PHI: dict[str, Any] = LLAMA | {"vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240}
LLAMA_13B: dict[str, Any] = LLAMA | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
GROUPS = {
    "llama": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
    "phi": [["q_proj", "k_proj", "v_proj", "fc1"], ["dense"], ["fc2"]],
}
LEAST = Plan(selective=True, recomputed=32, offload=True)
FULL = Plan(selective=True, recomputed=32)
# kind, optimizer, tokens of a micro-batch, plan, torch.cuda.max_memory_allocated in GiB over 24 steps:
# docs/benchmarks.md, one H200, 2026-11-21, torch 2.11.
MEASURED = [
    ("llama", "adamw_torch", 8192, Plan(resident=True), 46.03),
    ("llama", "adamw_torch", 8192, Plan(), 37.09),
    ("llama", "adamw_torch", 8192, Plan(selective=True), 27.71),
    ("llama", "adamw_torch", 8192, FULL, 7.26),
    ("llama", "adamw_bnb_8bit", 2112, FULL, 4.77),
    ("llama", "adamw_bnb_8bit", 2112, LEAST, 4.19),
    ("llama", "adamw_torch", 4096, Plan(selective=True, recomputed=8), 13.30),
    ("phi", "adamw_torch", 8192, Plan(resident=True), 23.44),
]


def shape(kind: str, optimizer: str = "adamw_torch", tokens: int = 8192) -> memory_plan.Shape:
    values = {"llama": LLAMA, "13b": LLAMA_13B, "phi": PHI}[kind]
    kind = "phi" if kind == "phi" else "llama"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **values), dtype=torch.bfloat16
        )
    sizes = {
        name.rpartition(".")[2]: memory_plan.Linear(module.in_features, module.out_features, True)
        for name, module in model.model.layers[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    pattern = [[sizes[name] for name in group] for group in GROUPS[kind]]
    measured_shape = memory_plan.shape_of(
        model.model, model.lm_head, pattern, rank=16, optimizer=optimizer, tokens=tokens
    )
    return replace(measured_shape, quantized=True)


@pytest.mark.parametrize(("kind", "optimizer", "tokens", "plan", "measured"), MEASURED)
def test_predicted_peaks_are_within_a_tenth_of_measured_ones(
    kind: str, optimizer: str, tokens: int, plan: Plan, measured: float
) -> None:
    """All plans, two architectures, 2,112 to 8,192 tokens."""
    predicted = memory_plan.peak_bytes(shape(kind, optimizer, tokens), plan) / GIB
    assert predicted == pytest.approx(measured, rel=0.1)


def test_predicted_peaks_of_a_shared_out_base_are_near_measured_ones() -> None:
    """7 B on two H200s; 13 B on two that had 9 GiB left each (docs/benchmarks.md, 2026-11-22)."""
    two = replace(shape("llama"), shards=2)
    assert memory_plan.peak_bytes(two, Plan()) / GIB == pytest.approx(35.83, rel=0.05)
    larger = replace(shape("13b", tokens=2048), shards=2)
    plan = Plan(selective=True, recomputed=37)
    assert memory_plan.peak_bytes(larger, plan) / GIB == pytest.approx(6.47, rel=0.05)
    assert memory_plan.peak_bytes(larger, plan) < memory_plan.peak_bytes(
        replace(larger, shards=1), plan
    )


def test_what_is_shared_out_is_not_dequantized_once() -> None:
    """Neither where memory would hold it, nor where the recipe names it."""
    shared = replace(shape("llama"), shards=8)
    assert not memory_plan.named("auto", shared, False, 139 * GIB).resident
    assert not memory_plan.named("resident", shared, False, 139 * GIB).resident


@pytest.mark.parametrize(
    ("gib", "expected"),
    [
        (139, Plan(resident=True)),
        (48, Plan(resident=True, selective=True)),
        (34, Plan(selective=True)),
        (6, LEAST),  # nothing fits: the leanest, and the GPU has the last word
    ],
)
def test_auto_takes_the_fastest_that_fits(gib: float, expected: Plan) -> None:
    """Dequantized once on a large card, everything computed again on a small one."""
    assert memory_plan.named("auto", shape("llama"), False, gib * GIB) == expected


def test_a_card_in_between_has_some_layers_computed_again() -> None:
    """As few layers as fit; a little less memory and it is one more."""
    plan = memory_plan.named("auto", shape("llama"), False, 16 * GIB)
    assert 0 < plan.recomputed < 32
    assert memory_plan.peak_bytes(shape("llama"), plan) <= memory_plan.USABLE * 16 * GIB
    fewer = replace(plan, recomputed=plan.recomputed - 1)
    assert memory_plan.peak_bytes(shape("llama"), fewer) > memory_plan.USABLE * 16 * GIB


def test_a_recipe_s_word_is_kept() -> None:
    """A named plan is taken as it is; gradient_checkpointing computes every layer again."""
    llama = shape("llama")
    assert memory_plan.named("none", llama, False, 1.0) == Plan()
    assert memory_plan.named("none", llama, True, 1.0).recomputed == 32
    assert memory_plan.named("auto", llama, True, 139 * GIB).recomputed == 32
    assert memory_plan.named("resident", replace(llama, quantized=False), False, 1.0) == Plan()


def test_when_memory_runs_out_leaner_plans_follow_to_the_end() -> None:
    """Each holds less than the one before; weights stay as they were; the last has no successor."""
    llama = shape("llama")
    plan: Plan | None = Plan(resident=True)
    peaks = []
    while plan is not None:
        assert plan.resident
        peaks.append(memory_plan.peak_bytes(llama, plan))
        plan = memory_plan.leaner(llama, plan)
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks) > 4
