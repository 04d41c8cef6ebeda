"""Train an adapter on a quantized base (QLoRA: Dettmers et al. 2023, arXiv:2305.14314).

A child-process target: JSON-able arguments and result, no Prefect, no MLflow. A run that was killed
resumes from its last complete checkpoint, here or in the checkpoint store, and, on one CPU thread,
ends with the very same weights. `train_in_this_process` shows the whole training in order.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.contracts import code_digest, digest
from tasks.contracts.errors import TrainingError
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import read_rows
from tasks.models import architecture, compatibility, loading
from tasks.models.encoding import encode_for
from tasks.models.prepared_base import PreparedBase
from tasks.train import launch, notes, result, resume
from tasks.train.checkpoints import local

# Training settings that are ours; all others are arguments of transformers' and TRL's trainers.
OWN_SETTINGS = {"timeout_hours", "checkpoint_store", "memory", "devices", "nodes", "base_weights"}
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


def train(rows: str, base: dict[str, Any], recipe: dict[str, Any], folder: str) -> dict[str, Any]:
    """Train on canonical `rows` (JSONL) over `base` (PreparedBase.as_json); all files stay in `folder`.

    Returns {"adapter": folder in PEFT's format, "digest", "metrics", "job": name of its checkpoints
    in the store, which stay there}; a job that finished in `folder` before is not trained again. Raises
    DataError without rows, TrainingError when the loss is not finite, memory runs out, the recipe
    does not fit the model, the checkpoint store cannot be used, or the run is cancelled (SIGTERM).

    With training.devices above 1 each device gets a process; ChildFailed says which of them ended
    without an answer, and where its log is.
    """
    call: dict[str, Any] = {"rows": rows, "base": base, "recipe": recipe, "folder": folder}
    parsed = Recipe.model_validate(recipe)
    if launch.needs_several_processes(parsed.training):
        return launch.train(call, parsed.training, Path(folder))
    loading.one_gpu()
    prepared = PreparedBase.from_json(base)
    return train_in_this_process(Path(rows), prepared, parsed, Path(folder))


def train_in_this_process(
    rows: Path, base: PreparedBase, recipe: Recipe, folder: Path
) -> dict[str, Any]:
    """`train` on one rank; with several, all of them call it (tasks.train.collectives)."""
    problems = compatibility.problems(recipe, base) or architecture.problems(recipe, base)
    if problems:
        raise TrainingError.of(["the recipe does not fit this base model:", *problems])
    start = resume.begin(lambda: _job(rows, base, recipe), folder, recipe.training.checkpoint_store)
    if start.answer:
        return start.answer
    trainer, facts = build_trainer(rows, base, recipe, folder, start)
    _run(trainer, start.checkpoint)
    metrics = result.metrics(trainer) | facts
    return resume.finish(trainer.model, recipe.base.model, folder, metrics, start.key)


def build_trainer(
    rows: Path,
    base: PreparedBase,
    recipe: Recipe,
    folder: Path,
    start: resume.Start = resume.FROM_SCRATCH,
) -> tuple[Any, dict[str, float]]:
    """Load data and base, and make the trainer with its adapter; and the metrics of the data."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from tasks.train.fast_path import base_model, setup
    from tasks.train.meter import Meter
    from tasks.train.trainer import AdapterTrainer

    tokenizer = AutoTokenizer.from_pretrained(
        base.path, local_files_only=True, trust_remote_code=False
    )
    examples = encode_for(read_rows(rows), tokenizer, base)
    dataset = Dataset.from_dict({"input_ids": examples.input_ids, "labels": examples.labels})
    model, choice = base_model.load(base, recipe)
    try:
        trainer = AdapterTrainer(
            model=model,
            args=_arguments(recipe, folder / "checkpoints", fast=choice is not None),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=lora_config(recipe),
            meter=Meter(local.usage_at(start.checkpoint) if start.checkpoint else {}),
            store=start.store,
        )
    except ValueError as error:
        raise TrainingError(f"the recipe does not fit this base model: {error}") from error
    if choice and not setup.enable(trainer, choice):
        base_model.use_plain_attention(trainer.model, base, recipe)
        trainer.args.gradient_checkpointing = recipe.training.gradient_checkpointing
    return trainer, {"rows": len(examples.input_ids), "truncated_rows": examples.truncated}


def _job(rows: Path, base: PreparedBase, recipe: Recipe) -> dict[str, Any]:
    """All that the weights depend on. A checkpoint is resumed by the same job only."""
    return {
        "rows": digest.of_file(rows),
        "base": base.digest,
        "quantization": recipe.base.quantization,
        "adapter": recipe.adapter.model_dump(mode="json"),
        "training": local.deciding_settings(recipe.training),
        "settings": json.loads(json.dumps(asdict(base.settings))),
        "max_row_tokens": base.max_row_tokens,
        **base.context_limits,
        "dtype": str(loading.compute_dtype()),
        "code": code_digest.of_step("train"),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def lora_config(recipe: Recipe) -> Any:
    """PEFT's configuration of the recipe's adapter."""
    from peft import LoraConfig

    targets = recipe.adapter.target_modules
    return LoraConfig(
        r=recipe.adapter.r,
        lora_alpha=recipe.adapter.lora_alpha,
        lora_dropout=recipe.adapter.lora_dropout,
        use_dora=recipe.adapter.kind == "dora",
        use_rslora=recipe.adapter.kind == "rslora",
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )


def _arguments(recipe: Recipe, checkpoint_folder: Path, fast: bool) -> Any:
    import torch
    from trl import SFTConfig

    dtype, cuda = loading.compute_dtype(), torch.cuda.is_available()
    values = recipe.training.model_dump(exclude=OWN_SETTINGS)
    if fast:  # its memory plan says which layers are recomputed
        values["gradient_checkpointing"] = False
    if fast and dtype == torch.bfloat16 and values["optim"] == "adamw_torch":
        values["optim"] = "adamw_torch_fused"  # the same update in one kernel, without copies
    return SFTConfig(
        output_dir=str(checkpoint_folder),
        **values,
        # Otherwise each batch waits until the GPU is done with the one before.
        accelerator_config={"non_blocking": cuda},
        data_seed=recipe.training.seed,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        packing_strategy="bfd",  # whole rows only; under "wrapped" rows see each other
        save_strategy="steps",
        save_total_limit=2,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it hides a loss that is not finite behind an average
        report_to=[],
        disable_tqdm=True,
    )


def _run(trainer: Any, checkpoint: Path | None) -> None:
    """All steps, from the checkpoint if there is one; TrainingError when cancelled or out of memory."""
    import torch

    from tasks.train import collectives

    if checkpoint:
        notes.info(f"training goes on from step {checkpoint.name.rpartition('-')[2]}")
    with _on_sigterm(trainer.progress.cancel):
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingError(
                "the GPU's memory does not hold this training step; lower "
                "training.per_device_train_batch_size or training.max_length, or set "
                f"training.memory: least ({error})"
            ) from error
    step, steps = trainer.state.global_step, trainer.state.max_steps
    collectives.barrier()  # torchrun would end rank 0 while it uploads the last checkpoint
    if trainer.progress.cancelled and step < steps:
        raise TrainingError(
            f"training was cancelled at step {step} of {steps}; the same recipe goes on from there"
        )


@contextlib.contextmanager
def _on_sigterm(call: Callable[..., None]) -> Iterator[None]:
    """Let the current step end on a cancel: tasks.processes.step_process sends TERM first."""
    before = signal.signal(signal.SIGTERM, call)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
