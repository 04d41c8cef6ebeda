"""The GPU's training path, run on a CPU: the same function as plain PEFT and TRL, or a note why not.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numeric
import pytest
import tiny
import torch

from tasks.contracts.errors import TrainingError
from tasks.contracts.units import GIB
from tasks.costs import memory_plan
from tasks.costs.memory_plan import Plan
from tasks.train import qlora
from tasks.train.fast_path import compilation, setup, varlen_attention
from tasks.train.trainer import completion_loss

COMPILER = "aot_eager"  # traces and differentiates as the real one; writes no kernels
ALL_AGAIN = Plan(selective=True, recomputed=2, offload=True)
STEPS = {"max_steps": 3, "logging_steps": 1, "learning_rate": 1e-2}


def make_phi(folder: Path) -> Path:
    """A random Phi: biases everywhere, a LayerNorm, attention and MLP side by side."""
    from transformers import PhiConfig, PhiForCausalLM

    folder.mkdir(parents=True)
    tiny.make_tokenizer(folder)
    config = PhiConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        resid_pdrop=0.0,
    )
    torch.manual_seed(0)
    PhiForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def make_granite(folder: Path) -> Path:
    """A random Granite: it scales its embedding, its residuals and its logits."""
    from transformers import GraniteConfig, GraniteForCausalLM

    folder.mkdir(parents=True)
    tiny.make_tokenizer(folder)
    config = GraniteConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        logits_scaling=4.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    GraniteForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "llama": tiny.make_tiny_base(folder / "llama", hidden=128, tied=False),
        "tied llama": tiny.make_tiny_base(folder / "tied", hidden=128),
        "phi": make_phi(folder / "phi"),
        "granite": make_granite(folder / "granite"),
    }


def trainer_over(base: Path, folder: Path, /, **parts: Any) -> tuple[Any, Any]:
    """TRL's trainer as `train` builds it on a CPU, and its recipe; B is not zero, as after a while."""
    rows = tiny.write_rows(folder / "rows.jsonl", tiny.make_rows(24))
    recipe = tiny.make_recipe(base, **parts)
    trainer = qlora.build_trainer(rows, tiny.prepared(base, recipe), recipe, folder / "job")[0]
    for i, (name, parameter) in enumerate(trainer.model.named_parameters()):
        if "lora_B" in name:
            made = torch.Generator().manual_seed(i)
            parameter.data.copy_(torch.randn(parameter.shape, generator=made) * 0.05)
    return trainer, recipe


def set_up(trainer: Any, recipe: Any, plan: Plan, compiler: str = COMPILER) -> bool:
    """Put it on the GPU's path, as `train` does where there is one."""
    trainer.model.set_attn_implementation(varlen_attention.register())
    shape = setup.shape_for(trainer.model.get_base_model(), recipe)
    return setup.enable(trainer, (plan, shape), compiler)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


CASES = [
    ("llama", Plan(), {}),
    ("llama", ALL_AGAIN, {}),
    pytest.param(
        "llama",
        Plan(selective=True, recomputed=1),
        {"base": {"quantization": "none"}},
        marks=pytest.mark.full,
    ),
    ("tied llama", Plan(), {"adapter": {"target_modules": ["q_proj", "v_proj"]}}),
    ("phi", Plan(), {}),
    pytest.param("phi", ALL_AGAIN, {}, marks=pytest.mark.full),
    ("granite", Plan(), {}),
]


@pytest.mark.parametrize(("name", "plan", "parts"), CASES)
def test_loss_and_gradients_are_plain_peft_s(
    name: str, plan: Plan, parts: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    """In float32, over NF4 and plain weights: packed rows, biases, recomputation, other heads."""
    trainer, recipe = trainer_over(bases[name], tmp_path, **parts)
    batch = next(iter(trainer.get_train_dataloader()))
    expected = completion_loss(trainer.model.train(), dict(batch))
    expected.backward()
    theirs = gradients(trainer.model)
    assert set_up(trainer, recipe, plan)
    assert trainer.fast_path.compiled
    assert trainer.fast_path.plain_head == (name != "granite")
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == (1, 512)
    assert ("inputs_embeds" in batch) == plan.offload
    found = trainer.fast_path(batch)
    found.backward()
    numeric.assert_close(found, expected, numeric.LOSS)
    ours = gradients(trainer.model)
    assert ours.keys() == theirs.keys()
    for parameter, gradient in theirs.items():
        numeric.assert_close(ours[parameter], gradient, numeric.MODEL, name=parameter)


def test_all_layers_share_one_compilation(bases: dict[str, Path], tmp_path: Path) -> None:
    """Neither the first layer nor another batch is compiled again."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trainer, recipe = trainer_over(bases["llama"], tmp_path, training={"max_length": 128})
    set_up(trainer, recipe, Plan())
    for batch in trainer.get_train_dataloader():
        trainer.fast_path(batch).backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("plan", [pytest.param(Plan(), marks=pytest.mark.full), ALL_AGAIN])
def test_training_goes_as_on_the_plain_path(
    plan: Plan, bases: dict[str, Path], tmp_path: Path
) -> None:
    """The same losses and gradient norms over steps of two micro-batches; tokens without filling."""
    logs = []
    for path in ("plain", "fast"):
        more = {"training": STEPS | {"gradient_accumulation_steps": 2, "max_length": 200}}
        trainer, recipe = trainer_over(bases["llama"], tmp_path / path, **more)
        if path == "fast":
            set_up(trainer, recipe, plan)
        trainer.train()
        steps = [line for line in trainer.state.log_history if "loss" in line]
        logs.append([(line["loss"], line["grad_norm"]) for line in steps])
        logs.append(trainer.meter.read()["tokens"])
    assert logs[1] == logs[3]
    assert len(logs[0]) == 3
    for ours, theirs in zip(logs[2], logs[0], strict=True):
        # Three steps of Adam, which carry the rounding of the first on: measured 2e-7.
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_resumed_run_ends_with_the_same_weights(bases: dict[str, Path], tmp_path: Path) -> None:
    """From a checkpoint of this path, with the embedding on the host."""
    more = {"training": STEPS | {"max_steps": 4, "save_steps": 2, "max_length": 200}}
    ends = []
    for folder, checkpoint in (("whole", None), ("resumed", "whole/job/checkpoints/checkpoint-2")):
        trainer, recipe = trainer_over(bases["llama"], tmp_path / folder, **more)
        set_up(trainer, recipe, ALL_AGAIN)
        trainer.train(resume_from_checkpoint=str(tmp_path / checkpoint) if checkpoint else None)
        named = trainer.model.named_parameters()
        ends.append({n: p.detach().clone() for n, p in named if p.requires_grad})
    assert {p.dtype for p in ends[0].values()} == {torch.float32}
    for name, value in ends[0].items():
        # The same operations on the same numbers; only the threads' shares of a sum may differ.
        numeric.assert_close(ends[1][name], value, numeric.MODEL, name=name)


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(
    bases: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A compiler that fails costs speed, not the run."""
    torch._dynamo.reset()

    @torch._dynamo.register_backend(name="precis_test_fails")
    def fails(*_: Any) -> Any:
        raise RuntimeError("no compiler on this machine")

    trainer, recipe = trainer_over(bases["llama"], tmp_path, training=STEPS)
    with caplog.at_level(logging.WARNING):
        assert set_up(trainer, recipe, ALL_AGAIN, "precis_test_fails")
    assert "layers run without compilation: BackendCompilerFailed" in caplog.text
    assert trainer.fast_path.facts()["compiled"] == 0.0
    trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"adapter": {"lora_dropout": 0.1}}, "adapter.lora_dropout is above 0"),
        ({"training": {"packing": False}}, "training.packing is off"),
        ({"training": {"memory": "plain"}}, "training.memory says so"),
    ],
)
def test_what_is_not_supported_gets_a_note(
    parts: dict[str, Any],
    why: str,
    bases: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such recipes train on TRL's own path."""
    trainer, recipe = trainer_over(bases["llama"], tmp_path, **parts)
    with caplog.at_level(logging.WARNING):
        assert setup.choose_plan(trainer.model.get_base_model(), recipe) is None
    assert f"training takes the plain path: {why}" in caplog.text


def test_other_adapters_take_the_plain_path(
    bases: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A variant of LoRA is not taken for LoRA; the trainer stays as it was."""
    from peft import LoraConfig, get_peft_model

    trainer, recipe = trainer_over(bases["llama"], tmp_path)
    base = trainer.model.unload()
    trainer.model = get_peft_model(base, LoraConfig(use_dora=True, target_modules="all-linear"))
    collator = trainer.data_collator
    with caplog.at_level(logging.WARNING):
        assert not set_up(trainer, recipe, Plan())
    assert "plain path: a variant of LoRA" in caplog.text
    assert trainer.fast_path is None
    assert trainer.data_collator is collator


class Full(setup.FastPath):
    """A GPU whose memory holds a step only once all but `room` layers are computed again."""

    room = 0

    def __call__(self, inputs: dict[str, Any], num_items: Any = None) -> torch.Tensor:
        if self.plan.recomputed < self.shape.layers - self.room:
            raise torch.cuda.OutOfMemoryError("of this test")
        return super().__call__(inputs, num_items)


def test_when_memory_runs_out_more_is_computed_again(
    bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The rehearsal finds the plan that fits, and says which; without any, what to lower."""
    trainer, recipe = trainer_over(bases["llama"], tmp_path)
    monkeypatch.setattr(setup, "FastPath", Full)
    monkeypatch.setattr(compilation, "compile_layers", lambda *_: None)
    with caplog.at_level(logging.WARNING):
        assert set_up(trainer, recipe, Plan())
    assert trainer.fast_path.plan == Plan(selective=True, recomputed=2)
    assert "memory ran out; now weights as loaded, 2 of 2 layers recomputed" in caplog.text
    monkeypatch.setattr(Full, "room", -1)
    with pytest.raises(
        TrainingError, match=r"not hold one training step.*per_device_train_batch_size"
    ):
        compilation.rehearse(trainer.fast_path, trainer)
    # Of a shared base no device can try again alone.
    monkeypatch.setattr(Full, "room", 0)
    trainer.fast_path.plan, trainer.fast_path.shape = (
        Plan(),
        replace(trainer.fast_path.shape, shards=2),
    )
    with pytest.raises(TrainingError, match=r"its part of the base.*training\.memory: least"):
        compilation.rehearse(trainer.fast_path, trainer)


def test_memory_that_runs_out_while_layers_are_watched_is_no_plain_path(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that took it for itself would leave the others waiting for its share of the weights."""

    def run_out(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("of this test")

    trainer, recipe = trainer_over(bases["llama"], tmp_path)
    monkeypatch.setattr(setup.model_call, "watch", run_out)
    with pytest.raises(TrainingError, match=r"its part of the base.*of this test"):
        setup.choose_plan(trainer.model.get_base_model(), recipe, shards=2)
    with pytest.raises(TrainingError, match=r"the base and one layer's pass; set training\.memory"):
        setup.choose_plan(trainer.model.get_base_model(), recipe)


def test_the_choice_is_part_of_the_metrics(bases: dict[str, Path], tmp_path: Path) -> None:
    """What was chosen, and what memory it was predicted to take."""
    trainer, recipe = trainer_over(bases["llama"], tmp_path)
    set_up(trainer, recipe, ALL_AGAIN)
    facts = trainer.fast_path.facts()
    assert facts["recomputed_layers"] == 2.0
    assert facts["inputs_on_host"] == facts["compiled"] == 1.0
    predicted = memory_plan.peak_bytes(trainer.fast_path.shape, trainer.fast_path.plan) / GIB
    assert facts["predicted_memory_gib"] == predicted
