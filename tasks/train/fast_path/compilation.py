"""Before the first step: compile the decoder's layers, and try one batch forward and backward.

What does not compile or does not fit the memory shows here, where a leaner plan can still be taken.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback

from tasks.contracts.errors import TrainingError
from tasks.costs import memory_plan
from tasks.train import collectives, notes
from tasks.train.fast_path import model_call
from tasks.train.fast_path.offload import OffloadToHost


def compile_layers(fast_path: Any, trainer: Any, compiler: str) -> None:
    """Compile the decoder's layers and try the first one; where that fails they run uncompiled.

    Tried without recomputation: an error within it would leave its hooks behind.
    """
    first = fast_path.core.layers[0]
    args, kwargs = _first_call(fast_path, _batch(trainer))
    torch._dynamo.config.recompile_limit = 32
    # Otherwise every operand of the backward pass's products is kept, cheap to recompute or not.
    torch._functorch.config.ban_recompute_materialized_backward = not fast_path.plan.selective
    for layer in fast_path.core.layers:
        _compile(layer, fast_path.shape.shards > 1, compiler)
    fast_path.compiled = True
    try:
        with torch.random.fork_rng(), _training(trainer.model):
            output = first(*args, **kwargs)
            (output if isinstance(output, torch.Tensor) else output[0]).sum().backward()
    except torch.cuda.OutOfMemoryError as error:
        raise out_of_memory(error, fast_path.shape.shards) from error
    except torch._dynamo.exc.TorchDynamoException as error:
        first_line = str(error).strip().splitlines()[0]
        notes.warn(f"layers run without compilation: {type(error).__name__}: {first_line}")
        logging.getLogger(__name__).warning("compilation failed", exc_info=error)
        for layer in fast_path.core.layers:
            layer._compiled_call_impl = None
            vars(layer).pop("forward", None)
        fast_path.compiled = False


def _compile(layer: Any, gathers: bool, compiler: str) -> None:
    """Compile a layer with its hooks, or, where these gather its weights, without them."""
    options = {"dynamic": False, "fullgraph": True, "backend": compiler}
    if gathers:
        layer.forward = torch.compile(layer.forward, **options)
    else:
        layer.compile(**options)


def rehearse(fast_path: Any, trainer: Any) -> None:
    """Run one batch forward and backward; while memory runs out, take the next leaner plan.

    All ranks take the leaner plan when memory runs out on one of them. Raises TrainingError when not
    even the leanest fits.
    """
    while True:
        _apply(fast_path, trainer)
        ran_out = ""
        try:
            with torch.random.fork_rng(), _training(trainer.model):
                (fast_path(_batch(trainer)) * 0.0).backward()
        except torch.cuda.OutOfMemoryError as error:
            ran_out = str(error) or type(error).__name__
        if ran_out and fast_path.shape.shards > 1:
            # The other ranks wait for this one's weights and cannot try again.
            raise out_of_memory(ran_out, fast_path.shape.shards)
        if not collectives.any_rank(bool(ran_out)):
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()  # the peak that is reported is training's
            return
        plan = memory_plan.leaner(fast_path.shape, fast_path.plan)
        if plan is None:
            raise out_of_memory(ran_out or "of another device", leanest=True)
        notes.warn(f"memory ran out; now {plan.describe(fast_path.shape)}")
        fast_path.plan = plan
        gc.collect()  # an interrupted recomputation keeps its hooks until it is collected
        torch.cuda.empty_cache()


def out_of_memory(error: object, shards: int = 1, leanest: bool = False) -> TrainingError:
    """The error for memory that ran out; `leanest`: no leaner plan is left."""
    lower = "lower training.per_device_train_batch_size or training.max_length"
    if shards > 1:
        return TrainingError(
            "a GPU's memory does not hold its part of the base and one training step; set "
            f"training.memory: least, {lower}, or raise training.devices ({error})"
        )
    if leanest:
        return TrainingError(
            "the GPU's memory does not hold one training step even with all layers computed again; "
            f"{lower} ({error})"
        )
    return TrainingError(
        f"the GPU's memory does not hold the base and one layer's pass; set training.memory: least, or "
        f"{lower} ({error})"
    )


class SkipModuleWalks(TrainerCallback):  # type: ignore[misc]
    """Avoids transformers' walks through all modules, several in each step.

    They take a CPU about 50 ms for 32 decoder layers, longer than a small model's layers run.
    """

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        """List the parameters once: from here on none is added or removed."""
        parameters = list(model.parameters())
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        set_mode = model.train

        def zero_grad(set_to_none: bool = True) -> None:
            for parameter in trainable:
                parameter.grad = None

        model.parameters = lambda recurse=True: iter(parameters)
        model.zero_grad = zero_grad
        model.train = lambda mode=True: model if model.training == mode else set_mode(mode)


def _apply(fast_path: Any, trainer: Any) -> None:
    """Apply the memory plan to layers and data."""
    dropout = any(isinstance(m, torch.nn.Dropout) and m.p for m in fast_path.core.modules())

    def recompute(function: Any, *args: Any) -> Any:
        run = functools.partial(
            checkpoint, function, use_reentrant=False, preserve_rng_state=dropout
        )
        if not fast_path.plan.offload:
            return run(*args)
        with OffloadToHost():
            return run(*args)

    for number, layer in enumerate(fast_path.core.layers):
        layer.gradient_checkpointing = number < fast_path.plan.recomputed
        layer._gradient_checkpointing_func = recompute
    embedding = fast_path.core.get_input_embeddings()
    if (
        fast_path.plan.offload
        and trainer.data_collator.embed is None
        and fast_path.shape.embedding_bytes
    ):
        trainer.data_collator.embed = copy.deepcopy(embedding).cpu()
        embedding.weight.data = embedding.weight.data.new_empty(0)


class _StopAtFirstLayer(Exception):
    pass


def _first_call(fast_path: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """The arguments that the first decoder layer is called with."""
    calls = []

    def record(_: Any, args: Any, kwargs: Any) -> None:
        calls.append((args, kwargs))
        raise _StopAtFirstLayer

    handle = fast_path.core.layers[0].register_forward_pre_hook(record, with_kwargs=True)
    try:
        fast_path(batch)
    except _StopAtFirstLayer:
        return calls[0]
    finally:
        handle.remove()
    raise TypeError(f"{type(fast_path.core).__name__} does not call its first layer")


def _batch(trainer: Any) -> dict[str, Any]:
    count, rows = trainer.args.train_batch_size, trainer.train_dataset
    batch = trainer.data_collator([rows[i % len(rows)] for i in range(count)])
    device = trainer.args.device
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@contextlib.contextmanager
def _training(model: Any) -> Iterator[None]:
    """Training mode, and no gradients left afterwards."""
    with model_call.mode(model, training=True):
        yield
    model.zero_grad(set_to_none=True)
