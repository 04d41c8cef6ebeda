"""A base sharded over two processes against a whole one: run by test_train_weight_sharding."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import test_train_fast as single
import tiny
import torch
from peft import LoraConfig, get_peft_model

from tasks.costs.memory_plan import Plan
from tasks.models import loading
from tasks.train import collectives
from tasks.train.fast_path import model_call, setup, weight_sharding

TOKENS = torch.arange(3, 43).reshape(2, 20)
LAYERS = 5


def held(model: Any) -> list[int]:
    """Bytes of each decoder layer's packed weights that this process holds as a whole."""
    return [
        next(p for p in layer.parameters() if not p.requires_grad).untyped_storage().nbytes()
        for layer in model_call.core_of(model).layers
    ]


def load(base: Path, quantization: str, shared: bool) -> Any:
    """As training loads it, with an adapter whose B is not zero."""
    if not shared:
        model = loading.load_base(base, quantization, torch.float32)
    else:
        with weight_sharding.sharded_loading(tiny.prepared(base)):
            model = loading.load_base(base, quantization, torch.float32)
        weight_sharding.gather_before_each_layer(model)
    torch.manual_seed(1)
    lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(model, lora).train()


def passes(model: Any, count: int) -> tuple[list[float], dict[str, torch.Tensor], list[int]]:
    """Losses of some passes, the gradients after them, and the most layers that were whole at once."""
    most: list[int] = []
    for layer in model_call.core_of(model.get_base_model()).layers:
        layer.register_forward_pre_hook(
            lambda *_: most.append(sum(size > 0 for size in held(model.get_base_model())))
        )
    losses = []
    for _ in range(count):
        loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return losses, grads, most


def compare(base: Path, quantization: str, again: str) -> dict[str, Any]:
    """Both ways to hold a base; `again`: how layers are computed again, if at all."""
    found = []
    for shared in (False, True):
        model = load(base, quantization, shared)
        if again != "no":
            model.gradient_checkpointing_enable({"use_reentrant": again == "reentrant"})
            model.enable_input_require_grads()
        found.append((*passes(model, 3), held(model.get_base_model())))
    (losses, grads, _, whole), (ours, mine, most, left) = found
    return {
        "equal": losses == ours and all(torch.equal(mine[name], grads[name]) for name in grads),
        "gradients": len(mine) if len(mine) == len(grads) else 0,
        "most": max(most),
        "left": sum(size > 0 for size in left),
        "layers": len(whole),
    }


def fast_path(base: Path, folder: Path, plan: Plan) -> dict[str, Any]:
    """The GPU's path, compiled: what trains on shared weights, and what on whole ones."""
    found = []
    for shared in ("replicated", "sharded"):
        steps = {"max_steps": 4, "logging_steps": 1, "learning_rate": 1e-2, "max_length": 200}
        trainer, recipe = single.trainer_over(
            base,
            folder / f"{shared}-{collectives.rank()}",
            training=steps | {"base_weights": shared, "devices": 2},
        )
        shards = weight_sharding.shard_count(recipe, tiny.prepared(base, recipe))
        trainer.model.set_attn_implementation(single.varlen_attention.register())
        shape = replace(setup.shape_for(trainer.model.get_base_model(), recipe), shards=shards)
        assert setup.enable(trainer, (plan, shape), single.COMPILER)
        trainer.train()
        lines = [line for line in trainer.state.log_history if "loss" in line]
        found.append([(line["loss"], line["grad_norm"]) for line in lines])
    left = sum(size > 0 for size in held(trainer.model.get_base_model()))
    return {
        "steps": found[1],
        "equal": found[0] == found[1],
        "shards": shards,
        "compiled": trainer.fast_path.compiled,
        "left": left,
    }


def main(folder: Path) -> None:
    """All cases in one team; what each rank found in FOLDER/RANK.json."""
    here = folder / os.environ["RANK"]
    bases = {
        "llama": tiny.make_tiny_base(here / "llama", hidden=128, tied=False, layers=LAYERS),
        "tied": tiny.make_tiny_base(here / "tied", hidden=128, layers=LAYERS),
        "phi": single.make_phi(here / "phi"),  # before the others are met: or one alone saves it
    }
    collectives.init_process_group()
    cases = [
        ("llama", "nf4", "no"),
        ("llama", "nf4", "yes"),
        ("llama", "nf4", "reentrant"),
        ("llama", "none", "no"),
        ("tied", "none", "yes"),
        ("phi", "nf4", "no"),
        ("llama", "fp4", "no"),
    ]
    found = {" ".join(case): compare(bases[case[0]], *case[1:]) for case in cases}
    for name, plan in (("kept", Plan()), ("again", single.ALL_AGAIN)):
        found[f"fast {name}"] = fast_path(bases["llama"], folder / name, plan)
    (folder / f"{collectives.rank()}.json").write_text(json.dumps(found))
    collectives.barrier()
    collectives.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
