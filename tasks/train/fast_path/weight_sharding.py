"""Weights are sharded over ranks, and gathered a layer at a time: for a base that does not fit one GPU.

A layer's weights are gathered before it computes, forward and backward, the next one's meanwhile: what
ZeRO's third stage (Rajbhandari et al. 2020, arXiv:1910.02054) and FSDP do, for frozen weights only.
Adapters, their gradients and moments are small and stay whole on every GPU, so steps, checkpoints and
the adapter are those of ranks that hold the whole base, to the last bit.

Considered: torch's FSDP with bitsandbytes' bnb_4bit_quant_storage, the usual way of FSDP and QLoRA: it
replaces the weights by tensors of another kind, which PEFT and our operations read, and loads them whole
first (docs/devices.md). Here a weight stays the tensor it is; only its memory is freed and filled.
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

ALIGNMENT = 256  # bytes: weights begin where torch's allocator would put them
SHAPE = "precis_shape"  # attribute of a sharded weight: its whole shape


def shard_count(recipe: Recipe, base: PreparedBase) -> int:
    """Over how many ranks the base's weights are sharded: all, or 1. The same answer on every rank.

    Under `training.base_weights: auto` they are, where even the leanest memory plan would not fit the
    GPU with the least free memory if that held all weights.
    """
    if collectives.world_size() == 1:
        return 1
    where = "cuda" if torch.cuda.is_available() else "cpu"
    # Free memory, and the memory that the process itself has taken already.
    free = (
        collectives.minimum(reachable_bytes()) + training_memory.CUDA_BYTES
        if where == "cuda"
        else 0
    )
    return training_memory.weight_shards(
        recipe, base.config, base.tensors, where, base.max_row_tokens, free
    )


@contextlib.contextmanager
def sharded_loading(base: PreparedBase) -> Iterator[None]:
    """A context in which from_pretrained of `base` keeps only this rank's shard of each linear weight.

    The head's, which may be the embedding's, stays whole. Each GPU reads and quantizes a weight whole
    and drops all but its shard before the next. Call `gather_before_each_layer` afterwards.
    """
    from transformers import modeling_utils

    vocabulary = base.config.get("vocab_size")

    def keep_shard(module: Any, name: str, weight: Any) -> None:
        if name == "weight" and _is_sharded(module, weight, vocabulary):
            setattr(weight, SHAPE, weight.shape)
            weight.data = _shard(weight.data)

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(keep_shard)
    warm_up, one_by_one = modeling_utils.caching_allocator_warmup, "HF_DEACTIVATE_ASYNC_LOAD"
    # transformers allocates memory for the whole model first, and reads several weights at a time.
    modeling_utils.caching_allocator_warmup = lambda *_: None
    before = os.environ.get(one_by_one)
    os.environ[one_by_one] = "1"
    try:
        yield
    finally:
        handle.remove()
        modeling_utils.caching_allocator_warmup = warm_up
        os.environ.pop(one_by_one)
        if before is not None:
            os.environ[one_by_one] = before


def _is_sharded(module: Any, weight: Any, vocabulary: int | None) -> bool:
    if not isinstance(module, torch.nn.Linear) or weight.is_meta:
        return False
    if module.out_features == vocabulary or not getattr(weight, "bnb_quantized", True):
        return False
    # On a CPU, tasks.models.quantization replaces 4-bit layers whose rows are no whole blocks, later.
    return weight.device.type != "cpu" or not module.in_features % getattr(weight, "blocksize", 1)


def _shard(whole: Tensor) -> Tensor:
    """This rank's shard of a tensor, flat [numel / ranks, rounded up, padded with zeros]."""
    flat, rank = whole.reshape(-1), collectives.rank()
    size = -(-flat.numel() // collectives.world_size())
    shard = flat.new_zeros(size)
    part = flat[rank * size : (rank + 1) * size]
    shard[: part.numel()] = part
    return shard


def _gathered(weight: Tensor) -> Tensor:
    shape = getattr(weight, SHAPE)
    shard = weight.detach().as_subclass(Tensor)
    gathered = shard.new_empty(collectives.world_size() * shard.numel())
    dist.all_gather_into_tensor(gathered, shard)
    return gathered[: shape.numel()].view(shape)


def _sharded_weights(module: Any) -> list[Any]:
    return [weight for weight in module.parameters() if hasattr(weight, SHAPE)]


def gather_before_each_layer(model: Any) -> None:
    """Have each decoder layer of a causal `model` gather its weights before it computes.

    `model` was loaded within `sharded_loading`. Weights outside the decoder layers are made whole.
    """
    layers = model_call.core_of(model).layers
    schedule = GatherSchedule([ShardedLayer(_sharded_weights(layer)) for layer in layers])
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(schedule.before_forward(number))
        layer.register_forward_hook(schedule.after_forward(number))
        layer.precis_gather = functools.partial(schedule.need, number)
    for weight in _sharded_weights(model):
        weight.data = _gathered(weight)
        delattr(weight, SHAPE)
    torch.cuda.empty_cache()  # for NCCL, which allocates outside torch


def gather_layer(layer: Any) -> None:
    """Gather a decoder layer's weights outside a pass, on all ranks; nothing where they are not sharded."""
    if hasattr(layer, "precis_gather"):
        layer.precis_gather()


class ShardedLayer:
    """The weights of a decoder layer as one buffer of bytes; a shard of it is kept, the rest is freed.

    The weights stay views of the buffer, whose memory is freed between uses: other references to it
    (a graph's saved tensors) are valid again once it is gathered.
    """

    def __init__(self, weights: list[Any]) -> None:
        gathered = [_gathered(weight) for weight in weights]
        starts, size = [], 0
        for weight in gathered:
            starts.append(size)
            size += -(-weight.numel() * weight.element_size() // ALIGNMENT) * ALIGNMENT
        self.size = -(-size // collectives.world_size()) * collectives.world_size()
        # Not `empty`: the bytes between weights should be the same in every run.
        self.buffer = torch.zeros(self.size, dtype=torch.uint8, device=_device(gathered))
        for weight, whole, start in zip(weights, gathered, starts, strict=True):
            flat = whole.reshape(-1).view(torch.uint8)
            view = self.buffer[start : start + flat.numel()]
            view.copy_(flat)
            weight.data = view.view(whole.dtype).view(whole.shape)
            delattr(weight, SHAPE)
        self.shard = _shard(self.buffer)
        self.work: Any = None
        self.is_gathered = True
        self.release()

    def begin(self) -> None:
        """Start to gather the weights; all ranks must call it."""
        if not self.is_gathered and self.size:
            self.buffer.untyped_storage().resize_(self.size)
            self.work = dist.all_gather_into_tensor(self.buffer, self.shard, async_op=True)
            self.is_gathered = True

    def wait(self) -> None:
        """Wait for them; on a GPU only the kernels that are launched from here on wait."""
        if self.work is not None:
            self.work.wait()
            self.work = None

    def release(self) -> None:
        """Free the memory."""
        self.wait()
        if self.is_gathered:
            self.buffer.untyped_storage().resize_(0)
            self.is_gathered = False


def _device(tensors: list[Tensor]) -> Any:
    return tensors[0].device if tensors else None


class GatherSchedule:
    """Which layers are gathered: the one that computes, and the next in the direction of the pass."""

    def __init__(self, layers: list[ShardedLayer]) -> None:
        self.layers = layers
        self.last = 0
        self.step = 1

    def need(self, number: int) -> None:
        """Gather a layer's weights before it computes; all ranks make the same calls in the same order."""
        if number in (0, len(self.layers) - 1):
            self.step = 1 if number == 0 else -1  # a pass ends: the next one begins here
        elif number != self.last:
            self.step = 1 if number > self.last else -1
        needed = (number, number + self.step)
        for other, layer in enumerate(self.layers):
            if other not in needed:
                layer.release()
        for index in needed:
            if 0 <= index < len(self.layers):
                self.layers[index].begin()
        self.layers[number].wait()
        self.last = number

    def before_forward(self, number: int) -> Any:
        """A hook before the layer's forward pass, which may also run within the backward pass."""
        return lambda *_: self.need(number)

    def after_forward(self, number: int) -> Any:
        """A hook after it: the layer's backward pass begins when its output's gradient is complete."""

        def hook(_: Any, __: Any, output: Any) -> None:
            hidden = output if isinstance(output, Tensor) else output[0]
            if hidden.requires_grad:
                hidden.register_hook(lambda _: self.need(number))

        return hook
