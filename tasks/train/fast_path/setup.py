"""Choose the fast path's plan for a base, and put a trainer on it.

The model stays transformers' and PEFT's; what changes is how it is computed: linear layers with their
adapters as one operation (lora_linear), attention over packed rows as another (varlen_attention), the
rest of a layer compiled, the loss at completion tokens alone (chunked_loss). What this does not support
is trained on TRL's path, and what does not compile runs uncompiled; the user gets a note of both.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers.modeling_layers import GradientCheckpointingLayer

from tasks.contracts.units import GIB
from tasks.costs import memory_plan
from tasks.models import loading
from tasks.models.encoding import IGNORED
from tasks.serving.summarizer.cache import reachable_bytes
from tasks.train import collectives, notes
from tasks.train.fast_path import (
    chunked_loss,
    compilation,
    install,
    lora_linear,
    model_call,
    nf4_kernel,
    weight_sharding,
)
from tasks.train.fast_path.collator import FixedShapeCollator, max_rows_per_batch

# Settings of `adapter` that plain LoRA has; any other, unless off, makes another function.
PLAIN_LORA = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"}
QUANTIZATIONS = {"nf4", "none"}
Choice = tuple[memory_plan.Plan, memory_plan.Shape]


class NotSupported(Exception):
    """The fast path does not support this model or recipe; the text says why."""


@dataclass
class FastPath:
    """Computes a PEFT model's loss. `plan` becomes leaner when memory runs out in the rehearsal."""

    causal: Any  # the base model with its head; its linear layers are PEFT's
    plan: memory_plan.Plan
    shape: memory_plan.Shape
    compiled: bool = False
    plain_head: bool = True  # logits are the head's output, not scaled or capped

    @property
    def core(self) -> Any:
        """The model without its head."""
        return model_call.core_of(self.causal)

    def __call__(self, inputs: dict[str, Any], num_items: Any = None) -> torch.Tensor:
        """Mean negative log-likelihood a completion token, for a batch of FixedShapeCollator.

        `num_items` is the count of completion tokens over all micro-batches of the step.
        """
        at, targets = inputs["learned_at"], inputs["learned"]
        with torch.autocast(targets.device.type, enabled=False):  # each operation sets its types
            if self.plain_head:
                hidden = self.core(**model_call.arguments(self.causal, inputs)).last_hidden_state[
                    0, at
                ]
                head = self.causal.get_output_embeddings()
                total = chunked_loss.token_loss(hidden, head.weight, head.bias, targets)
            else:
                logits = self.causal(
                    **model_call.arguments(self.causal, inputs), logits_to_keep=at
                ).logits[0]
                total = cross_entropy(
                    logits.float(), targets, ignore_index=IGNORED, reduction="sum"
                )
        count = (targets != IGNORED).sum() if num_items is None else num_items
        return total / torch.as_tensor(count).clamp(min=1)

    def facts(self) -> dict[str, float]:
        """The choice, for the metrics."""
        return {
            "compiled": float(self.compiled),
            "weights_resident_in_16_bits": float(self.plan.resident),
            "recomputed_layers": float(self.plan.recomputed),
            "inputs_on_host": float(self.plan.offload),
            "weight_shards": float(self.shape.shards),
            "predicted_memory_gib": memory_plan.peak_bytes(self.shape, self.plan) / GIB,
        }


def choose_plan(model: Any, recipe: Any, shards: int = 1) -> Choice | None:
    """The memory plan for a freshly loaded base; None where the fast path does not support it.

    `model` is a causal model without adapters whose attention is varlen_attention's; `shards`: over
    how many ranks its weights are sharded. A note says what was chosen, or why not.
    """
    try:
        shape = replace(shape_for(model, recipe), shards=shards)
    except torch.cuda.OutOfMemoryError as error:  # with several ranks, none can continue alone
        raise compilation.out_of_memory(error, shards) from error
    except NotSupported as why:
        notes.warn(f"training takes the plain path: {why}")
        return None
    training = recipe.training
    available = collectives.minimum(reachable_bytes())  # the same plan on all ranks
    plan = memory_plan.named(training.memory, shape, training.gradient_checkpointing, available)
    need = memory_plan.peak_bytes(shape, plan) / GIB
    notes.info(
        f"training.memory {training.memory}: {plan.describe(shape)}; about {need:.1f} of "
        f"{available / GIB:.1f} GiB"
    )
    return plan, shape


def shape_for(model: Any, recipe: Any) -> memory_plan.Shape:
    """The sizes that memory plans are computed from; NotSupported where there is no fast path."""
    if recipe.training.memory == "plain":
        raise NotSupported("training.memory says so")
    if recipe.base.quantization not in QUANTIZATIONS:
        raise NotSupported(f"base.quantization is {recipe.base.quantization}")
    if not recipe.training.packing:
        raise NotSupported("training.packing is off, so shapes change from batch to batch")
    if recipe.adapter.lora_dropout:
        raise NotSupported("adapter.lora_dropout is above 0")
    causal, core = model, model_call.core_of(model)
    _require_supported(model, core, recipe)
    try:
        pattern = install.pattern_of(core.layers[0], functools.partial(model_call.watch, causal))
    except torch.cuda.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise NotSupported(f"{type(model).__name__}: {error}") from error
    named = install.linears(core.layers[0])
    targets = recipe.adapter.target_modules
    return memory_plan.shape_of(
        core,
        model.get_output_embeddings(),
        [
            [
                memory_plan.Linear(
                    named[n].in_features, named[n].out_features, _adapted(n, targets)
                )
                for n in g
            ]
            for g in pattern
        ],
        rank=recipe.adapter.r,
        optimizer=recipe.training.optim,
        tokens=recipe.training.per_device_train_batch_size * recipe.training.max_length,
    )


def _require_supported(model: Any, core: Any, recipe: Any) -> None:
    for name, field in type(recipe.adapter).model_fields.items():
        if name not in PLAIN_LORA and getattr(recipe.adapter, name) != field.default:
            raise NotSupported(f"adapter.{name} is set")
    layers = getattr(core, "layers", [])
    if not layers or model.get_output_embeddings() is None:
        raise NotSupported(f"a {type(model).__name__} keeps its layers or its head elsewhere")
    if not all(isinstance(layer, GradientCheckpointingLayer) for layer in layers):
        raise NotSupported(f"layers of a {type(model).__name__} cannot be computed again")
    if not install.linears(layers[0]):
        raise NotSupported(f"{type(model).__name__}'s layers have no linear layers of a known kind")
    try:
        for layer in install.linears(layers[0]).values():
            lora_linear.frozen(install.base_of(layer))
    except ValueError as error:
        raise NotSupported(str(error)) from error


def _adapted(name: str, targets: Any) -> bool:
    return targets == "all-linear" or any(
        name == target or name.endswith(f".{target}") for target in targets
    )


def enable(trainer: Any, choice: Choice, compiler: str = "inductor") -> bool:
    """Put `trainer`'s model and data on the fast path, and try one batch.

    False where the model with its adapters is not supported (a note says why); the trainer is then
    as it was. Raises TrainingError when not even the leanest plan fits the GPU.
    """
    plan, shape = choice
    causal = trainer.model.get_base_model()
    core = model_call.core_of(causal)
    try:
        problems = install.unsupported(trainer.model, core)
        if problems:
            raise NotSupported(", ".join(problems))
        pattern = install.pattern_of(core.layers[0], functools.partial(model_call.watch, causal))
        installed = install.install(core, pattern)
    except (NotSupported, ValueError) as why:
        notes.warn(f"training takes the plain path: {why}")
        return False
    weight_sharding.gather_layer(core.layers[0])
    _use_nf4_kernel(installed)
    trainer.data_collator = FixedShapeCollator(
        trainer.data_collator,
        shape.tokens,
        max_rows_per_batch(trainer.train_dataset["seq_lengths"], trainer.args.train_batch_size),
        trainer.processing_class.pad_token_id or 0,
    )
    trainer.fast_path = FastPath(causal, plan, shape, plain_head=model_call.head_is_plain(causal))
    compilation.compile_layers(trainer.fast_path, trainer, compiler)
    compilation.rehearse(trainer.fast_path, trainer)
    trainer.add_callback(compilation.SkipModuleWalks())
    return True


def _use_nf4_kernel(installed: list[install.Group]) -> None:
    """Try the NF4 kernel on the first weight; where it fails bitsandbytes' kernels are used."""
    weight = lora_linear.frozen(install.base_of(installed[0].layers[0]))
    if len(weight.parts) > 1 and weight.parts[0].is_cuda:
        why = nf4_kernel.try_kernel(weight.parts, weight.shape, loading.compute_dtype())
        if why:
            notes.warn(f"weights are dequantized by bitsandbytes' three kernels: {why}")
