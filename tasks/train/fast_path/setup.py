"""Training on a GPU: fixed shapes, compiled layers, nothing that waits for the GPU within a step.

The model stays transformers' and PEFT's own; what changes is how it is computed: linear layers with
their adapters as one operation (`linear`), attention over packed rows as another (`varlen`), the
rest of a layer compiled, the loss at completion tokens alone (`loss`). What this cannot serve is
trained by TRL's own path, and what cannot be compiled runs as it is; both are said, never silent.
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
from tasks.train import collectives
from tasks.train.fast_path import (
    chunked_loss,
    compilation,
    install,
    lora_linear,
    model_call,
    nf4_kernel,
    weight_sharding,
)
from tasks.train.fast_path.collator import Steady, most_rows
from tasks.train.fast_path.compilation import say

# Settings of `adapter` that plain LoRA knows; any other, unless off, makes another function.
PLAIN_LORA = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"}


SERVED = {"nf4", "none"}  # base.quantization


class NotServed(Exception):
    """This model, or this recipe, is not for this path; the text says why."""


@dataclass
class Fast:
    """A PEFT model's training step. `plan` may become leaner when memory runs out in rehearsal."""

    causal: Any  # the base model with its head, in which PEFT's layers stand
    plan: memory_plan.Plan
    shape: memory_plan.Shape
    compiled: bool = False
    plain_head: bool = True  # logits are the head's output and nothing more

    @property
    def core(self) -> Any:
        """The model without its head."""
        return model_call.core_of(self.causal)

    def __call__(self, inputs: dict[str, Any], num_items: Any = None) -> torch.Tensor:
        """Mean negative log-likelihood a completion token, for a batch that `Steady` made.

        `num_items` is the count of completion tokens over all micro-batches of the step.
        """
        at, wanted = inputs["learned_at"], inputs["learned"]
        with torch.autocast(wanted.device.type, enabled=False):  # each operation knows its types
            if self.plain_head:
                hidden = self.core(**model_call.arguments(self.causal, inputs)).last_hidden_state[
                    0, at
                ]
                head = self.causal.get_output_embeddings()
                total = chunked_loss.token_loss(hidden, head.weight, head.bias, wanted)
            else:
                logits = self.causal(
                    **model_call.arguments(self.causal, inputs), logits_to_keep=at
                ).logits[0]
                total = cross_entropy(logits.float(), wanted, ignore_index=IGNORED, reduction="sum")
        count = (wanted != IGNORED).sum() if num_items is None else num_items
        return total / torch.as_tensor(count).clamp(min=1)

    def facts(self) -> dict[str, float]:
        """What was chosen, for the metrics."""
        return {
            "compiled": float(self.compiled),
            "weights_resident_in_16_bits": float(self.plan.resident),
            "recomputed_layers": float(self.plan.recomputed),
            "inputs_on_host": float(self.plan.offload),
            "weight_shards": float(self.shape.shards),
            "predicted_memory_gib": memory_plan.peak_bytes(self.shape, self.plan) / GIB,
        }


def choose(
    model: Any, recipe: Any, shards: int = 1
) -> tuple[memory_plan.Plan, memory_plan.Shape] | None:
    """How to train this freshly loaded base; None where it is not for this path (said why).

    `model` is a causal model without adapters that attends by `varlen`; `shards`: how many devices
    hold a part of its weights each.
    """
    try:
        shape = replace(_shape(model, recipe), shards=shards)
    except torch.cuda.OutOfMemoryError as error:  # none of several devices can go on alone
        raise compilation.does_not_fit(error, shards) from error
    except NotServed as why:
        say(f"training takes the plain path: {why}", warn=True)
        return None
    training = recipe.training
    available = collectives.least(reachable_bytes())  # the same plan on all devices
    plan = memory_plan.named(training.memory, shape, training.gradient_checkpointing, available)
    need = memory_plan.peak_bytes(shape, plan) / GIB
    say(
        f"training.memory {training.memory}: {plan.describe(shape)}; about {need:.1f} of "
        f"{available / GIB:.1f} GiB"
    )
    return plan, shape


def _shape(model: Any, recipe: Any) -> memory_plan.Shape:
    if recipe.training.memory == "plain":
        raise NotServed("training.memory says so")
    if recipe.base.quantization not in SERVED:
        raise NotServed(f"base.quantization is {recipe.base.quantization}")
    if not recipe.training.packing:
        raise NotServed("training.packing is off, so shapes change from batch to batch")
    if recipe.adapter.lora_dropout:
        raise NotServed("adapter.lora_dropout is above 0")
    causal, core = model, model_call.core_of(model)
    _refuse_unknown(model, core, recipe)
    try:
        pattern = install.pattern_of(core.layers[0], functools.partial(model_call.watch, causal))
    except torch.cuda.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise NotServed(f"{type(model).__name__}: {error}") from error
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


def _refuse_unknown(model: Any, core: Any, recipe: Any) -> None:
    for name, field in type(recipe.adapter).model_fields.items():
        if name not in PLAIN_LORA and getattr(recipe.adapter, name) != field.default:
            raise NotServed(f"adapter.{name} is set")
    layers = getattr(core, "layers", [])
    if not layers or model.get_output_embeddings() is None:
        raise NotServed(f"a {type(model).__name__} keeps its layers or its head elsewhere")
    if not all(isinstance(layer, GradientCheckpointingLayer) for layer in layers):
        raise NotServed(f"layers of a {type(model).__name__} cannot be computed again")
    if not install.linears(layers[0]):
        raise NotServed(f"{type(model).__name__}'s layers have no linear layers of a known kind")
    try:
        for layer in install.linears(layers[0]).values():
            lora_linear.frozen(install.base_of(layer))
    except ValueError as error:
        raise NotServed(str(error)) from error


def _adapted(name: str, targets: Any) -> bool:
    return targets == "all-linear" or any(
        name == target or name.endswith(f".{target}") for target in targets
    )


def set_up(
    trainer: Any, chosen: tuple[memory_plan.Plan, memory_plan.Shape], compiler: str = "inductor"
) -> bool:
    """Make `trainer`'s model and data ready for this path, and try one batch.

    False where the model turns out not to be served (said why); the trainer is then as it was.
    Raises TrainingError when not even the leanest plan fits the GPU.
    """
    plan, shape = chosen
    causal = trainer.model.get_base_model()
    core = model_call.core_of(causal)
    try:
        problems = install.unknown(trainer.model, core)
        if problems:
            raise NotServed(", ".join(problems))
        pattern = install.pattern_of(core.layers[0], functools.partial(model_call.watch, causal))
        installed = install.install(core, pattern)
    except (NotServed, ValueError) as why:
        say(f"training takes the plain path: {why}", warn=True)
        return False
    weight_sharding.gather(core.layers[0])
    _dequantize_quickly(installed)
    trainer.data_collator = Steady(
        trainer.data_collator,
        shape.tokens,
        most_rows(trainer.train_dataset["seq_lengths"], trainer.args.train_batch_size),
        trainer.processing_class.pad_token_id or 0,
    )
    trainer.fast = Fast(causal, plan, shape, plain_head=model_call.head_is_plain(causal))
    compilation.compile_layers(trainer.fast, trainer, compiler)
    compilation.rehearse(trainer.fast, trainer)
    trainer.add_callback(compilation.Still())
    return True


def _dequantize_quickly(installed: list[install.Group]) -> None:
    """Try the NF4 kernel on the first weight; without it bitsandbytes' own are used."""
    weight = lora_linear.frozen(install.base_of(installed[0].layers[0]))
    if len(weight.parts) > 1 and weight.parts[0].is_cuda:
        why = nf4_kernel.try_kernel(weight.parts, weight.shape, loading.compute_dtype())
        if why:
            say(f"weights are dequantized by bitsandbytes' three kernels: {why}", warn=True)
