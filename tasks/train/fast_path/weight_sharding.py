"""A base that does not fit one GPU: each of a team rests a share of every decoder layer's frozen weights.

A layer's are gathered before it computes, forward and backward, the next one's while it does: what
ZeRO's third stage (Rajbhandari et al. 2020, arXiv:1910.02054) and FSDP do, for what is not trained.
Adapters, their gradients and moments are small and stay whole on every GPU, so that a team's step,
its checkpoints and its adapter are those of a team that holds the whole base, to the last bit.

Not torch's FSDP, for reasons that docs/devices.md gives. Here a weight stays the tensor it is; its
memory comes and goes.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from tasks.contracts.recipe import Recipe
from tasks.costs import training_memory
from tasks.models.prepared_base import PreparedBase
from tasks.serving.summarizer.cache import reachable_bytes
from tasks.train import collectives
from tasks.train.fast_path import model_call

ALIGNED = 256  # bytes: weights begin where an allocation of their own would
SHAPE = "precis_shape"  # of a weight of which this process holds a share


def wanted(recipe: Recipe, base: PreparedBase) -> int:
    """How many parts the base's weights are to rest in: the team's size, or 1. The same for all of it.

    `training.base_weights: auto` asks whether the leanest way to train fits the GPU with the least
    memory when it holds all of them.
    """
    if collectives.size() == 1:
        return 1
    where = "cuda" if torch.cuda.is_available() else "cpu"
    # Beside what the process itself took of it already.
    free = (
        collectives.least(reachable_bytes()) + training_memory.CUDA_BYTES if where == "cuda" else 0
    )
    return training_memory.weight_shards(
        recipe, base.config, base.tensors, where, base.max_row_tokens, free
    )


@contextlib.contextmanager
def while_loading(base: PreparedBase) -> Iterator[None]:
    """Within it, from_pretrained of `base` leaves this process a share of each linear layer's weight.

    Not of the head's, which may be the embedding's. A weight is read and quantized whole, on each GPU,
    and all but its share is dropped before the next one comes. `install` must follow.
    """
    from transformers import modeling_utils

    vocabulary = base.config.get("vocab_size")

    def keep_share(module: Any, name: str, weight: Any) -> None:
        if name == "weight" and _is_shared_out(module, weight, vocabulary):
            setattr(weight, SHAPE, weight.shape)
            weight.data = _share(weight.data)

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(keep_share)
    warm_up, at_once = modeling_utils.caching_allocator_warmup, "HF_DEACTIVATE_ASYNC_LOAD"
    # It takes memory for the whole model at first, and several weights are read at the same time.
    modeling_utils.caching_allocator_warmup = lambda *_: None
    before = os.environ.get(at_once)
    os.environ[at_once] = "1"
    try:
        yield
    finally:
        handle.remove()
        modeling_utils.caching_allocator_warmup = warm_up
        os.environ.pop(at_once)
        if before is not None:
            os.environ[at_once] = before


def _is_shared_out(module: Any, weight: Any, vocabulary: int | None) -> bool:
    if not isinstance(module, torch.nn.Linear) or weight.is_meta:
        return False
    if module.out_features == vocabulary or not getattr(weight, "bnb_quantized", True):
        return False
    # Uneven rows of 4 bits are replaced on a CPU after loading: tasks.models.quantization.
    return weight.device.type != "cpu" or not module.in_features % getattr(weight, "blocksize", 1)


def _share(whole: Tensor) -> Tensor:
    """This process's share of a tensor's elements [numel / team, rounded up]."""
    flat, rank = whole.reshape(-1), collectives.rank()
    size = -(-flat.numel() // collectives.size())
    mine = flat.new_zeros(size)
    here = flat[rank * size : (rank + 1) * size]
    mine[: here.numel()] = here
    return mine


def _whole(weight: Tensor) -> Tensor:
    shape = getattr(weight, SHAPE)
    mine = weight.detach().as_subclass(Tensor)
    every = mine.new_empty(collectives.size() * mine.numel())
    dist.all_gather_into_tensor(every, mine)
    return every[: shape.numel()].view(shape)


def _shares(module: Any) -> list[Any]:
    return [weight for weight in module.parameters() if hasattr(weight, SHAPE)]


def install(model: Any) -> None:
    """Have each decoder layer of a causal `model`, loaded `while_loading`, gather its weights in turn.

    What lies outside of the layers is made whole again.
    """
    layers = model_call.core_of(model).layers
    turns = Turns([Layer(_shares(layer)) for layer in layers])
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(turns.before_forward(number))
        layer.register_forward_hook(turns.after_forward(number))
        layer.precis_gather = functools.partial(turns.need, number)
    for weight in _shares(model):
        weight.data = _whole(weight)
        delattr(weight, SHAPE)
    torch.cuda.empty_cache()  # NCCL takes its own memory; nothing where there is no GPU


def gather(layer: Any) -> None:
    """Have a decoder layer's weights outside of a pass; all of the team. Nothing where it keeps them."""
    if hasattr(layer, "precis_gather"):
        layer.precis_gather()


class Layer:
    """The weights of a decoder layer as one stretch of bytes: a share of it rests, the whole comes and goes.

    The weights stay views of the whole, whose memory is given back in between: whatever else names
    it (a graph's saved tensors) finds it filled again when it is gathered.
    """

    def __init__(self, weights: list[Any]) -> None:
        wholes = [_whole(weight) for weight in weights]
        starts, size = [], 0
        for whole in wholes:
            starts.append(size)
            size += -(-whole.numel() * whole.element_size() // ALIGNED) * ALIGNED
        self.size = -(-size // collectives.size()) * collectives.size()
        # Not `empty`: what lies between weights should be the same in every run.
        self.whole = torch.zeros(self.size, dtype=torch.uint8, device=_device(wholes))
        for weight, whole, start in zip(weights, wholes, starts, strict=True):
            flat = whole.reshape(-1).view(torch.uint8)
            place = self.whole[start : start + flat.numel()]
            place.copy_(flat)
            weight.data = place.view(whole.dtype).view(whole.shape)
            delattr(weight, SHAPE)
        self.share = _share(self.whole)
        self.work: Any = None
        self.there = True
        self.release()

    def begin(self) -> None:
        """Start to gather the weights; all of the team."""
        if not self.there and self.size:
            self.whole.untyped_storage().resize_(self.size)
            self.work = dist.all_gather_into_tensor(self.whole, self.share, async_op=True)
            self.there = True

    def wait(self) -> None:
        """Until they are there: on a GPU for what is computed from here on."""
        if self.work is not None:
            self.work.wait()
            self.work = None

    def release(self) -> None:
        """Give the memory back."""
        self.wait()
        if self.there:
            self.whole.untyped_storage().resize_(0)
            self.there = False


def _device(tensors: list[Tensor]) -> Any:
    return tensors[0].device if tensors else None


class Turns:
    """Which layers are whole: the one at work, and the next in the direction of the pass."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self.last = 0
        self.step = 1

    def need(self, number: int) -> None:
        """Have a layer's weights before it computes; the same calls, in order, by all of the team."""
        if number in (0, len(self.layers) - 1):
            self.step = 1 if number == 0 else -1  # a pass ends: the next one begins here
        elif number != self.last:
            self.step = 1 if number > self.last else -1
        wanted = (number, number + self.step)
        for other, layer in enumerate(self.layers):
            if other not in wanted:
                layer.release()
        for one in wanted:
            if 0 <= one < len(self.layers):
                self.layers[one].begin()
        self.layers[number].wait()
        self.last = number

    def before_forward(self, number: int) -> Any:
        """A hook of the layer's forward pass, which may also run within the backward pass."""
        return lambda *_: self.need(number)

    def after_forward(self, number: int) -> Any:
        """A hook of its end: its backward pass begins when its output's gradient is complete."""

        def hook(_: Any, __: Any, output: Any) -> None:
            found = output if isinstance(output, Tensor) else output[0]
            if found.requires_grad:
                found.register_hook(lambda _: self.need(number))

        return hook
