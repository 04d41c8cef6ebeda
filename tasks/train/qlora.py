"""Train an adapter on a quantized base (QLoRA: Dettmers et al. 2023, arXiv:2305.14314).

A child-process target: JSON-able arguments and result, no Prefect, no MLflow. A run that was killed
resumes from its last whole checkpoint, here or in the checkpoint store, and, on one CPU thread, ends
with the very same weights.
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
from tasks.models import compatibility, loading
from tasks.models.encoding import encode_for
from tasks.models.prepared_base import PreparedBase
from tasks.processes import step_process
from tasks.train import launch, result, resume
from tasks.train.checkpoints import local, store

NOT_TRAINER_S = {"timeout_hours", "checkpoint_store", "memory", "devices", "nodes", "base_weights"}
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


def train(rows: str, base: dict[str, Any], recipe: dict[str, Any], folder: str) -> dict[str, Any]:
    """Train on canonical `rows` (JSONL) over `base` (PreparedBase.as_json); everything is kept in `folder`.

    Returns {"adapter": folder in PEFT's format, "digest", "metrics", "job": name of its checkpoints
    in the store, which stay there}; a job that ended in `folder` before is not trained again. Raises
    DataError without rows, TrainingError when the loss is not finite, memory runs out, the recipe
    does not fit the model, the checkpoint store cannot be used, or the run is cancelled (SIGTERM).

    With training.devices above 1 each device gets a process; ChildFailed says which of them ended
    without an answer, and where its log is.
    """
    call: dict[str, Any] = {"rows": rows, "base": base, "recipe": recipe, "folder": folder}
    parsed = Recipe.model_validate(recipe)
    if launch.wanted(parsed.training):
        return launch.train(call, parsed.training, Path(folder))
    loading.one_gpu()
    return train_here(Path(rows), PreparedBase.from_json(base), parsed, Path(folder))


def train_here(rows: Path, base: PreparedBase, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """`train` in this process, alone or in a team (tasks.train.collectives) that all call it."""
    if problems := compatibility.problems(recipe, base):
        raise TrainingError.of(["the recipe does not fit this base model:", *problems])
    start = resume.begin(lambda: _job(rows, base, recipe), folder, recipe.training.checkpoint_store)
    if start.answer:
        return start.answer
    trainer, facts = _build(rows, base, recipe, folder, start.resume, start.kept)
    _run(trainer, start.resume)
    metrics = result.metrics(trainer) | facts | (trainer.fast.facts() if trainer.fast else {})
    return resume.end(trainer.model, recipe.base.model, folder, metrics, start.key)


def _job(rows: Path, base: PreparedBase, recipe: Recipe) -> dict[str, Any]:
    """All that the weights depend on. Only the same job may go on from a checkpoint."""
    return {
        "rows": digest.of_file(rows),
        "base": base.digest,
        "quantization": recipe.base.quantization,
        "adapter": recipe.adapter.model_dump(mode="json"),
        "training": local.deciding(recipe.training),
        "settings": json.loads(json.dumps(asdict(base.settings))),
        "max_row_tokens": base.max_row_tokens,
        **base.context_limits,
        "dtype": str(loading.compute_dtype()),
        "code": code_digest.of_step("train"),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def _build(
    rows: Path,
    base: PreparedBase,
    recipe: Recipe,
    folder: Path,
    resume: Path | None,
    kept: store.Store | None,
) -> tuple[Any, dict[str, float]]:
    """The trainer, and what is known of its data before the first step."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from tasks.train.fast_path import setup
    from tasks.train.meter import Meter
    from tasks.train.trainer import AdapterTrainer

    tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)
    examples = encode_for(read_rows(rows), tokenizer, base)
    model, chosen = _base_model(base, recipe)
    try:
        trainer = AdapterTrainer(
            model=model,
            args=_arguments(recipe, folder / "checkpoints", fast=chosen is not None),
            train_dataset=Dataset.from_dict(
                {"input_ids": examples.input_ids, "labels": examples.labels}
            ),
            processing_class=tokenizer,
            peft_config=_lora(recipe),
            meter=Meter(local.meter_of(resume) if resume else {}),
            store=kept,
        )
    except ValueError as error:
        raise TrainingError(f"the recipe does not fit this base model: {error}") from error
    if chosen and not setup.set_up(trainer, chosen):
        _take_plain_path(trainer.model, base, recipe)
        trainer.args.gradient_checkpointing = recipe.training.gradient_checkpointing
    return trainer, {"rows": len(examples.input_ids), "truncated_rows": examples.truncated}


def _base_model(base: PreparedBase, recipe: Recipe) -> tuple[Any, Any]:
    """The base as it is trained, and how (fast.choose): None on a CPU, or for TRL's own path."""
    import torch

    from tasks.models import quantization
    from tasks.train import attention
    from tasks.train.fast_path import compilation, setup, varlen_attention, weight_sharding

    dtype, cuda = loading.compute_dtype(), loading.device() != "cpu"
    plain = attention.implementation(base.config) if recipe.training.packing else None
    # Scores that are capped, or shapes that no test has shown, are for the plain path.
    serves = cuda and plain is not None and not base.config.get("attn_logit_softcapping")
    shards = weight_sharding.wanted(recipe, base)
    try:
        with weight_sharding.while_loading(base) if shards > 1 else contextlib.nullcontext():
            model = loading.load_base(
                base.path,
                recipe.base.quantization,
                dtype,
                varlen_attention.register() if serves else plain,
            )
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(
            "the base model does not fit the GPU; set base.quantization: nf4, name a smaller "
            "base.model, or train on more devices, each with a part of it (training.base_weights: "
            f"sharded, docs/devices.md), or on GPUs with more memory ({error})"
        ) from error
    if shards > 1:
        try:
            weight_sharding.install(model)  # a layer is there twice while it is put in its place
        except torch.cuda.OutOfMemoryError as error:
            raise compilation.does_not_fit(error, shards) from error
    chosen = setup.choose(model, recipe, shards) if serves else None
    if chosen and chosen[0].resident:
        quantization.dequantize_once(model)
    elif serves and not chosen:
        _take_plain_path(model, base, recipe)
    return model, chosen


def _take_plain_path(model: Any, base: PreparedBase, recipe: Recipe) -> None:
    from tasks.serving.summarizer import served_attention
    from tasks.train import attention

    plain = attention.implementation(base.config) if recipe.training.packing else None
    model.set_attn_implementation(plain or served_attention(base.path) or "sdpa")


def _lora(recipe: Recipe) -> Any:
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
    values = recipe.training.model_dump(exclude=NOT_TRAINER_S)
    if fast:  # its plan says which layers are computed again
        values["gradient_checkpointing"] = False
    if fast and dtype == torch.bfloat16 and values["optim"] == "adamw_torch":
        values["optim"] = "adamw_torch_fused"  # the same update in one kernel, without copies
    return SFTConfig(
        output_dir=str(checkpoint_folder),
        **values,
        # Or each batch waits until the GPU has done the one before.
        accelerator_config={"non_blocking": cuda},
        data_seed=recipe.training.seed,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        packing_strategy="bfd",  # whole rows only; "wrapped" lets them see each other
        save_strategy="steps",
        save_total_limit=2,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it hides a broken loss behind an average
        report_to=[],
        disable_tqdm=True,
    )


def _run(trainer: Any, resume: Path | None) -> None:
    import torch

    from tasks.train import collectives

    if resume:
        step = resume.name.rpartition("-")[2]
        step_process.report(kind="note", text=f"training goes on from step {step}", failed=False)
    with _on_sigterm(trainer.watch.cancel):
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingError(
                "the GPU's memory does not hold this training step; lower "
                "training.per_device_train_batch_size or training.max_length, or set "
                f"training.memory: least ({error})"
            ) from error
    step, steps = trainer.state.global_step, trainer.state.max_steps
    collectives.wait()  # or torchrun ends the first one while it puts the checkpoint into the store
    if trainer.watch.cancelled and step < steps:
        raise TrainingError(
            f"training was cancelled at step {step} of {steps}; the same recipe goes on from there"
        )


@contextlib.contextmanager
def _on_sigterm(call: Callable[..., None]) -> Iterator[None]:
    """A cancel (tasks.processes.step_process ends the group with TERM first) lets the step under way end."""
    before = signal.signal(signal.SIGTERM, call)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
