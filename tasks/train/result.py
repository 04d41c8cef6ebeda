"""The result of training: the adapter's folder and its metrics."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

from tasks.models import loading
from tasks.processes import json_file, resource_usage


def save_adapter(model: Any, base_name: str, folder: Path) -> None:
    """Write two files that depend on the weights and the recipe alone, not on the machine or the day."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    # The type that the base was quantized from and computed in: the merge uses the same. One entry
    # only: safetensors writes several in an order that differs between processes.
    metadata = {"compute_dtype": str(loading.compute_dtype()).split(".")[-1]}
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        partial / "adapter_model.safetensors",
        metadata,
    )
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    as_json = {name: sorted(v) if isinstance(v, set) else v for name, v in config.items()}
    json_file.write(partial / "adapter_config.json", as_json)
    # safetensors makes a file that only its owner may read
    shutil.copymode(partial / "adapter_config.json", partial / "adapter_model.safetensors")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def metrics(trainer: Any) -> dict[str, float]:
    """Loss, steps, time, tokens and memory of a finished training, the parts before a resume included.

    All ranks must call it: tokens are their sum, memory is that of the rank that used most.
    """
    from tasks.train import collectives

    logs = [line for line in trainer.state.log_history if "loss" in line]
    steps = [0, *(line["step"] for line in logs)]
    weights = [after - before for before, after in itertools.pairwise(steps)]
    total = sum(line["loss"] * weight for line, weight in zip(logs, weights, strict=True))
    usage: dict[str, float] = trainer.meter.read()
    step = trainer.state.global_step
    fast_path = trainer.fast_path.facts() if trainer.fast_path else {}
    return (
        usage
        | fast_path
        | {
            "train_loss": total / max(step, 1),
            "first_loss": logs[0]["loss"],
            "last_loss": logs[-1]["loss"],
            "steps": step,
            "epochs": trainer.state.epoch,
            "tokens_per_second": usage["tokens"] / usage["seconds"],
            "seconds_per_step": usage["seconds"] / max(step, 1),
            "peak_memory_gib": collectives.maximum(resource_usage.peak_gib()),
            "trainable_parameters": sum(
                p.numel() for p in trainer.model.parameters() if p.requires_grad
            ),
        }
    )
