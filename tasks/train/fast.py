"""Training on a GPU: fixed shapes, compiled layers, nothing that waits for the GPU within a step.

The model stays transformers' and PEFT's own; what changes is how it is computed: linear layers with
their adapters as one operation (`linear`), attention over packed rows as another (`varlen`), the
rest of a layer compiled, the loss at completion tokens alone (`loss`). What this cannot serve is
trained by TRL's own path, and what cannot be compiled runs as it is; both are said, never silent.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback

from tasks import child, loading
from tasks.errors import TrainingError
from tasks.examples import IGNORED
from tasks.train import groups, linear, loss, memory, nf4, varlen
from tasks.train.host import OnHost
from tasks.train.steady import Steady, most_rows

FEW = 8  # tokens, to see which layers read the same tensor
CLOSE = 2e-2  # our head against the model's own, in 16 bits


SERVED = {"nf4", "none"}  # base.quantization


class NotServed(Exception):
    """This model, or this recipe, is not for this path; the text says why."""


@dataclass
class Fast:
    """A PEFT model's training step. `plan` may become leaner when memory runs out in rehearsal."""

    causal: Any  # the base model with its head, in which PEFT's layers stand
    plan: memory.Plan
    shape: memory.Shape
    compiled: bool = False
    plain_head: bool = True  # logits are the head's output and nothing more

    @property
    def core(self) -> Any:
        """The model without its head."""
        return _core(self.causal)

    def __call__(self, inputs: dict[str, Any], num_items: Any = None) -> torch.Tensor:
        """Mean negative log-likelihood a completion token, for a batch that `Steady` made.

        `num_items` is the count of completion tokens over all micro-batches of the step.
        """
        at, wanted = inputs["learned_at"], inputs["learned"]
        with torch.autocast(
            wanted.device.type, enabled=False
        ):  # types are seen to where they matter
            if self.plain_head:
                hidden = self.core(**arguments(self.causal, inputs)).last_hidden_state[0, at]
                head = self.causal.get_output_embeddings()
                total = loss.token_loss(hidden, head.weight, head.bias, wanted)
            else:
                logits = self.causal(**arguments(self.causal, inputs), logits_to_keep=at).logits[0]
                total = cross_entropy(logits.float(), wanted, ignore_index=IGNORED, reduction="sum")
        count = (wanted != IGNORED).sum() if num_items is None else num_items
        return total / torch.as_tensor(count).clamp(min=1)

    def facts(self) -> dict[str, float]:
        """What was chosen, for the metrics."""
        return {
            "compiled": float(self.compiled),
            "weights_resident_in_16_bits": float(self.plan.resident),
            "recomputed_layers": float(self.plan.recomputed),
            "inputs_on_host": float(self.plan.on_host),
            "predicted_memory_gib": memory.peak_bytes(self.shape, self.plan) / memory.GIB,
        }


def arguments(causal: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch that `Steady` made as the model takes it."""
    embedded = inputs.get("inputs_embeds")
    if embedded is None:
        embedded = causal.get_input_embeddings()(inputs["input_ids"])
    return {
        # All layers alike, so that one compilation serves the first one too.
        "inputs_embeds": embedded.detach().requires_grad_(torch.is_grad_enabled()),
        "position_ids": inputs["position_ids"],
        # Of four dimensions, or transformers looks for packed rows and waits for the answer.
        "attention_mask": embedded.new_zeros(1, 1, 1, 1),
        "cu_seq_lens_q": inputs["bounds"],
        "max_length_q": torch.tensor([inputs["longest"], inputs["row_count"]]),
        "rows_kernel": kernel(causal),
        "use_cache": False,
    }


def kernel(causal: Any) -> str:
    """The attention kernel that serves a model."""
    config, weight = _core(causal).config, causal.get_output_embeddings().weight
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return varlen.kernel_for(weight.device, weight.dtype, width)


def choose(model: Any, recipe: Any) -> tuple[memory.Plan, memory.Shape] | None:
    """How to train this freshly loaded base; None where it is not for this path (said why).

    `model` is a causal model without adapters that attends by `varlen`.
    """
    try:
        shape = _shape(model, recipe)
    except NotServed as why:
        _say(f"training takes the plain path: {why}", warn=True)
        return None
    training = recipe.training
    free, _ = torch.cuda.mem_get_info()
    available = free + torch.cuda.memory_reserved()
    plan = memory.named(training.memory, shape, training.gradient_checkpointing, available)
    need = memory.peak_bytes(shape, plan) / memory.GIB
    _say(
        f"training.memory {training.memory}: {plan.words(shape.layers)}; about {need:.1f} of "
        f"{available / memory.GIB:.1f} GiB"
    )
    return plan, shape


def _shape(model: Any, recipe: Any) -> memory.Shape:
    if recipe.training.memory == "plain":
        raise NotServed("training.memory says so")
    if recipe.base.quantization not in SERVED:
        raise NotServed(f"base.quantization is {recipe.base.quantization}")
    if not recipe.training.packing:
        raise NotServed("training.packing is off, so shapes change from batch to batch")
    if recipe.adapter.lora_dropout:
        raise NotServed("adapter.lora_dropout is above 0")
    causal, core = model, _core(model)
    if not hasattr(core, "layers") or model.get_output_embeddings() is None:
        raise NotServed(f"a {type(model).__name__} keeps its layers or its head elsewhere")
    try:
        pattern = groups.pattern_of(core.layers[0], functools.partial(_watch, causal))
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise NotServed(f"{type(model).__name__}: {error}") from error
    named = groups.linears(core.layers[0])
    targets = recipe.adapter.target_modules
    return memory.shape_of(
        core,
        model.get_output_embeddings(),
        [
            [
                memory.Linear(named[n].in_features, named[n].out_features, _adapted(n, targets))
                for n in g
            ]
            for g in pattern
        ],
        rank=recipe.adapter.r,
        optimizer=recipe.training.optim,
        tokens=recipe.training.per_device_train_batch_size * recipe.training.max_length,
    )


def _adapted(name: str, targets: Any) -> bool:
    return targets == "all-linear" or any(
        name == target or name.endswith(f".{target}") for target in targets
    )


def set_up(
    trainer: Any, chosen: tuple[memory.Plan, memory.Shape], compiler: str = "inductor"
) -> bool:
    """Make `trainer`'s model and data ready for this path, and try one batch.

    False where the model turns out not to be served (said why); the trainer is then as it was.
    Raises TrainingError when not even the leanest plan fits the GPU.
    """
    plan, shape = chosen
    causal = trainer.model.get_base_model()
    core = _core(causal)
    try:
        problems = groups.unknown(trainer.model, core)
        if problems:
            raise NotServed(", ".join(problems))
        pattern = groups.pattern_of(core.layers[0], functools.partial(_watch, causal))
        installed = groups.install(core, pattern)
    except (NotServed, ValueError) as why:
        _say(f"training takes the plain path: {why}", warn=True)
        return False
    _dequantize_quickly(installed)
    trainer.data_collator = Steady(
        trainer.data_collator,
        shape.tokens,
        most_rows(trainer.train_dataset["seq_lengths"], trainer.args.train_batch_size),
        trainer.processing_class.pad_token_id or 0,
    )
    trainer.fast = Fast(causal, plan, shape, plain_head=_head_is_plain(causal))
    _compile(trainer.fast, trainer, compiler)
    _rehearse(trainer.fast, trainer)
    trainer.add_callback(_Still())
    return True


def _dequantize_quickly(installed: list[groups.Group]) -> None:
    """Try the NF4 kernel on the first weight; without it bitsandbytes' own are used."""
    weight = linear.frozen(groups.base_of(installed[0].layers[0]))
    if len(weight.parts) > 1 and weight.parts[0].is_cuda:
        why = nf4.try_kernel(weight.parts, weight.shape, loading.compute_dtype())
        if why:
            _say(f"weights are dequantized by bitsandbytes' three kernels: {why}", warn=True)


class _Still(TrainerCallback):  # type: ignore[misc]
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


def _core(causal: Any) -> Any:
    return getattr(causal, causal.base_model_prefix)


def _few(causal: Any) -> dict[str, Any]:
    """A few tokens, as the model takes them."""
    device = causal.get_input_embeddings().weight.device
    inputs = {
        "input_ids": torch.arange(FEW, device=device)[None],
        "position_ids": torch.arange(FEW, device=device)[None],
        "bounds": torch.tensor([0, FEW], dtype=torch.int32, device=device),
        "longest": FEW,
        "row_count": 1,
    }
    return arguments(causal, inputs)


def _watch(causal: Any) -> None:
    # In training mode: bitsandbytes repacks weights for a CPU when they are used in the other one.
    with torch.no_grad(), _mode(causal, training=True):
        _core(causal)(**_few(causal))


def _apply(fast: Fast, trainer: Any) -> None:
    """What the plan says, to layers and data."""
    dropout = any(isinstance(m, torch.nn.Dropout) and m.p for m in fast.core.modules())

    def again(function: Any, *args: Any) -> Any:
        run = functools.partial(
            checkpoint, function, use_reentrant=False, preserve_rng_state=dropout
        )
        if not fast.plan.on_host:
            return run(*args)
        with OnHost():
            return run(*args)

    for number, layer in enumerate(fast.core.layers):
        layer.gradient_checkpointing = number < fast.plan.recomputed
        layer._gradient_checkpointing_func = again
    embedding = fast.core.get_input_embeddings()
    if fast.plan.on_host and trainer.data_collator.embed is None and fast.shape.embedding_bytes:
        trainer.data_collator.embed = copy.deepcopy(embedding).cpu()
        embedding.weight.data = embedding.weight.data.new_empty(0)


def _compile(fast: Fast, trainer: Any, compiler: str) -> None:
    """Compile the decoder's layers, and try one of them; where that fails they run as they are.

    Apart from recomputation: an error within it would leave its hooks behind.
    """
    first = fast.core.layers[0]
    args, kwargs = _first_call(fast, _batch(trainer))
    torch._dynamo.config.recompile_limit = 32
    # Otherwise whatever the backward pass multiplies is kept, cheap to compute again or not.
    torch._functorch.config.ban_recompute_materialized_backward = not fast.plan.selective
    for layer in fast.core.layers:
        layer.compile(dynamic=False, fullgraph=True, backend=compiler)
    fast.compiled = True
    try:
        with torch.random.fork_rng(), _training(trainer.model):
            found = first(*args, **kwargs)
            (found if isinstance(found, torch.Tensor) else found[0]).sum().backward()
    except torch._dynamo.exc.TorchDynamoException as error:
        said = str(error).strip().splitlines()[0]
        _say(f"layers run without compilation: {type(error).__name__}: {said}", warn=True)
        logging.getLogger(__name__).warning("compilation failed", exc_info=error)
        for layer in fast.core.layers:
            layer._compiled_call_impl = None
        fast.compiled = False


def _head_is_plain(causal: Any) -> bool:
    """Whether nothing follows the head: some models scale or cap their logits."""
    few = _few(causal)
    with torch.no_grad(), _mode(causal, training=False):  # without dropout
        theirs = causal(**few).logits.float()
        hidden = _core(causal)(**few).last_hidden_state
        ours = causal.get_output_embeddings()(hidden).float()
    return bool(torch.allclose(ours, theirs, rtol=CLOSE, atol=CLOSE * float(theirs.std())))


class _Seen(Exception):
    pass


def _first_call(fast: Fast, batch: dict[str, Any]) -> tuple[Any, Any]:
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
def _mode(model: Any, training: bool) -> Iterator[None]:
    was = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(was)


@contextlib.contextmanager
def _training(model: Any) -> Iterator[None]:
    """In training mode, and no gradients left afterwards."""
    with _mode(model, training=True):
        yield
    model.zero_grad(set_to_none=True)


def _rehearse(fast: Fast, trainer: Any) -> None:
    """One batch forward and backward: finds out whether the plan fits, and takes leaner ones."""
    while True:
        _apply(fast, trainer)
        try:
            with torch.random.fork_rng(), _training(trainer.model):
                (fast(_batch(trainer)) * 0.0).backward()
            return
        except torch.cuda.OutOfMemoryError as error:
            plan = memory.leaner(fast.shape, fast.plan)
            if plan is None:
                raise TrainingError(
                    "the GPU's memory does not hold one training step even with all layers computed "
                    "again; lower training.per_device_train_batch_size or training.max_length "
                    f"({error})"
                ) from error
            _say(f"memory ran out; now {plan.words(fast.shape.layers)}", warn=True)
            fast.plan = plan
        gc.collect()  # a checkpoint that was left in the middle leaves its hooks until then
        torch.cuda.empty_cache()


def _say(text: str, warn: bool = False) -> None:
    logging.getLogger(__name__).log(logging.WARNING if warn else logging.INFO, text)
    child.report(kind="note", text=text, failed=warn)
