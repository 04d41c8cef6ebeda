"""Before the first step: compile the decoder's layers, and try one batch.

What does not work or not fit is found here, where another way can still be taken.
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
from tasks.processes import step_process
from tasks.train import collectives
from tasks.train.fast_path import model_call
from tasks.train.fast_path.offload import OnHost


def say(text: str, warn: bool = False) -> None:
    """To the log, and to whoever started this process."""
    logging.getLogger(__name__).log(logging.WARNING if warn else logging.INFO, text)
    step_process.report(kind="note", text=text, failed=warn)


def compile_layers(fast: Any, trainer: Any, compiler: str) -> None:
    """Compile the decoder's layers, and try one of them; where that fails they run as they are.

    Apart from recomputation: an error within it would leave its hooks behind.
    """
    first = fast.core.layers[0]
    args, kwargs = _first_call(fast, _batch(trainer))
    torch._dynamo.config.recompile_limit = 32
    # Otherwise whatever the backward pass multiplies is kept, cheap to compute again or not.
    torch._functorch.config.ban_recompute_materialized_backward = not fast.plan.selective
    for layer in fast.core.layers:
        _compile(layer, fast.shape.shards > 1, compiler)
    fast.compiled = True
    try:
        with torch.random.fork_rng(), _training(trainer.model):
            found = first(*args, **kwargs)
            (found if isinstance(found, torch.Tensor) else found[0]).sum().backward()
    except torch.cuda.OutOfMemoryError as error:
        raise does_not_fit(error, fast.shape.shards) from error
    except torch._dynamo.exc.TorchDynamoException as error:
        said = str(error).strip().splitlines()[0]
        say(f"layers run without compilation: {type(error).__name__}: {said}", warn=True)
        logging.getLogger(__name__).warning("compilation failed", exc_info=error)
        for layer in fast.core.layers:
            layer._compiled_call_impl = None
            vars(layer).pop("forward", None)
        fast.compiled = False


def _compile(layer: Any, gathers: bool, compiler: str) -> None:
    """A layer with its hooks, or, where these gather its weights, without them."""
    how = {"dynamic": False, "fullgraph": True, "backend": compiler}
    if gathers:
        layer.forward = torch.compile(layer.forward, **how)
    else:
        layer.compile(**how)


def rehearse(fast: Any, trainer: Any) -> None:
    """One batch forward and backward: finds out whether the plan fits, and takes leaner ones.

    Where it does not fit one device of several, it is left by all.
    """
    while True:
        _apply(fast, trainer)
        ran_out = ""
        try:
            with torch.random.fork_rng(), _training(trainer.model):
                (fast(_batch(trainer)) * 0.0).backward()
        except torch.cuda.OutOfMemoryError as error:
            ran_out = str(error) or type(error).__name__
        if ran_out and fast.shape.shards > 1:  # the others wait for weights: they can only end, too
            raise does_not_fit(ran_out, fast.shape.shards)
        if not collectives.any_of(bool(ran_out)):
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()  # what is reported is training's own
            return
        plan = memory_plan.leaner(fast.shape, fast.plan)
        if plan is None:
            raise does_not_fit(ran_out or "of another device", leanest=True)
        say(f"memory ran out; now {plan.describe(fast.shape)}", warn=True)
        fast.plan = plan
        gc.collect()  # a checkpoint that was left in the middle leaves its hooks until then
        torch.cuda.empty_cache()


def does_not_fit(error: object, shards: int = 1, leanest: bool = False) -> TrainingError:
    """What to say when memory ran out: `shards` of the base's weights, the `leanest` plan having failed."""
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


class Still(TrainerCallback):  # type: ignore[misc]
    """Spares the walks through all modules that transformers takes several times a step.

    They cost a CPU about 50 ms for 32 decoder layers, more than a small model's layers.
    """

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        """Parameters no longer change from here on."""
        every = list(model.parameters())
        trained = [parameter for parameter in every if parameter.requires_grad]
        walk = model.train

        def zero_grad(set_to_none: bool = True) -> None:
            for parameter in trained:
                parameter.grad = None

        model.parameters = lambda recurse=True: iter(every)
        model.zero_grad = zero_grad
        model.train = lambda mode=True: model if model.training == mode else walk(mode)


def _apply(fast: Any, trainer: Any) -> None:
    """What the plan says, to layers and data."""
    dropout = any(isinstance(m, torch.nn.Dropout) and m.p for m in fast.core.modules())

    def again(function: Any, *args: Any) -> Any:
        run = functools.partial(
            checkpoint, function, use_reentrant=False, preserve_rng_state=dropout
        )
        if not fast.plan.offload:
            return run(*args)
        with OnHost():
            return run(*args)

    for number, layer in enumerate(fast.core.layers):
        layer.gradient_checkpointing = number < fast.plan.recomputed
        layer._gradient_checkpointing_func = again
    embedding = fast.core.get_input_embeddings()
    if fast.plan.offload and trainer.data_collator.embed is None and fast.shape.embedding_bytes:
        trainer.data_collator.embed = copy.deepcopy(embedding).cpu()
        embedding.weight.data = embedding.weight.data.new_empty(0)


class _Seen(Exception):
    pass


def _first_call(fast: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """What the first decoder layer is called with."""
    found = []

    def keep(_: Any, args: Any, kwargs: Any) -> None:
        found.append((args, kwargs))
        raise _Seen

    handle = fast.core.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        fast(batch)
    except _Seen:
        return found[0]
    finally:
        handle.remove()
    raise TypeError(f"{type(fast.core).__name__} does not call its first layer")


def _batch(trainer: Any) -> dict[str, Any]:
    count, rows = trainer.args.train_batch_size, trainer.train_dataset
    batch = trainer.data_collator([rows[i % len(rows)] for i in range(count)])
    device = trainer.args.device
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@contextlib.contextmanager
def _training(model: Any) -> Iterator[None]:
    """In training mode, and no gradients left afterwards."""
    with model_call.mode(model, training=True):
        yield
    model.zero_grad(set_to_none=True)
