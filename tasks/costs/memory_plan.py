"""The memory plan: what a training step holds in a GPU's memory, and the fastest plan that fits.

All plans compute the same function. They differ in which activations are kept for the backward pass,
recomputed (Chen et al. 2016, arXiv:1604.06174) or offloaded to the host, and in whether the NF4 weights
are dequantized in every pass or once. Over 250 lines: one model of memory, read in one place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tasks.contracts.units import GIB
from tasks.models.weight_bytes import NF4_BYTES, PACKED_BYTES

# Dequantizing a weight takes as long as multiplying this many tokens by it, in 16 bits on the GPUs
# that are used for training: 17 ms of an H200 for two passes over 6.5 G weights at 707 TFLOP/s.
DEQUANTIZED_TOKENS = 470
# Norms and activations that are recomputed take this share of a forward pass (0.2 of 12 ms a layer).
SELECTIVE_SHARE = 0.015
# Copies between host and device hide behind 8,192 tokens' products, not behind 512's.
OFFLOADED_SHARE = 0.05
USABLE = 0.9  # of free memory: the rest goes to fragments, workspaces and other libraries
WORKSPACE = 0.15 * GIB  # cuBLAS', and small things
CHUNK_LOGITS = 2**24  # of a chunk of the loss: 64 MiB in float32
OPTIMIZER_BYTES = {  # of states on the GPU, an adapter parameter; paged states may be on the host
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "adamw_bnb_8bit": 2,
    "paged_adamw_32bit": 0,
    "paged_adamw_8bit": 0,
    "adafactor": 1,
    "sgd": 0,
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and a step that memory depends on. Elements, where no unit is named."""

    layers: int
    linear: int  # weights of the decoder's linear layers
    other_bytes: int  # embedding, head, norms
    embedding_bytes: int  # the part of it that may lie on the host; 0 when the head shares it
    adapter: int  # trained parameters
    optimizer_bytes: int  # a trained parameter
    hidden: int
    kept: int  # a token and layer, nothing recomputed
    kept_selective: int  # norms and activations recomputed
    widest: int  # the largest linear layer
    busy: int  # a token: what a layer's backward pass holds besides the kept activations
    tokens: int  # of a micro-batch
    loss_bytes: int
    element_bytes: int = 2
    quantized: bool = True
    shards: int = 1  # of the linear layers' weights, one on each device


@dataclass(frozen=True)
class Plan:
    """How to train: `recomputed` decoder layers keep only their input, and run again."""

    resident: bool = False  # weights dequantized once
    selective: bool = False
    recomputed: int = 0
    offload: bool = False  # inputs of recomputed layers, and the embedding

    def describe(self, shape: Shape) -> str:
        """The plan in one line, for logs."""
        weights = "weights in 16 bits (dequantized once)" if self.resident else "weights as loaded"
        recomputed = "nothing recomputed"
        if self.recomputed:
            recomputed = f"{self.recomputed} of {shape.layers} layers recomputed"
        elif self.selective:
            recomputed = "norms and activations recomputed"
        offloaded = ", their inputs and the embedding in host memory" if self.offload else ""
        sharded = f", sharded over {shape.shards} devices" if shape.shards > 1 else ""
        return f"{weights}{sharded}, {recomputed}{offloaded}"


def peak_bytes(shape: Shape, plan: Plan) -> float:
    """The most that a step holds at once, in bytes."""
    bits = shape.element_bytes if plan.resident or not shape.quantized else NF4_BYTES
    weights = _linear_bytes(shape, bits) + shape.other_bytes
    weights -= shape.embedding_bytes if plan.offload else 0
    always = weights + shape.adapter * (4 + shape.optimizer_bytes) + WORKSPACE
    a_token = shape.tokens * shape.element_bytes
    kept = (shape.kept_selective if plan.selective else shape.kept) * a_token
    inputs = 0 if plan.offload else plan.recomputed * shape.hidden * a_token
    waiting = (shape.layers - plan.recomputed) * kept
    again = kept if plan.recomputed else 0
    gradients = shape.adapter * 4
    dequantized = shape.widest * shape.element_bytes if bits == NF4_BYTES else 0
    busy = shape.busy * a_token + dequantized
    return always + max(
        inputs + waiting + shape.loss_bytes,
        inputs + waiting + (0 if waiting else again) + busy,  # the backward pass begins
        inputs + gradients * (1 - plan.recomputed / shape.layers) + again + busy,  # first run again
        gradients + again + busy,  # it ends
    )


def _linear_bytes(shape: Shape, bits: float) -> float:
    """Of the stored linear layers; sharded ones with two layers gathered, and scales on each device."""
    if shape.shards == 1:
        return shape.linear * bits
    scales = bits - PACKED_BYTES if shape.quantized else 0
    whole = shape.linear * (bits - scales)
    return shape.linear * scales + whole / shape.shards + min(1, 2 / shape.layers) * whole


def relative_time(shape: Shape, plan: Plan) -> float:
    """A step's time, in passes of one token through all linear layers (of four or more)."""
    again = plan.recomputed / shape.layers
    selective = SELECTIVE_SHARE * (1 - again) if plan.selective else 0.0
    passes = 4 + 2 * again + 2 * selective
    tokens = shape.tokens * passes
    if shape.quantized and not plan.resident:
        tokens += DEQUANTIZED_TOKENS * (4 + 2 * again)
    return tokens * (1 + OFFLOADED_SHARE if plan.offload else 1)


def plans(shape: Shape) -> Iterator[Plan]:
    """All plans for this model, in no order."""
    for resident in {False, _may_dequantize_once(shape)}:
        for selective in (False, True):
            for recomputed in range(shape.layers + 1):
                yield Plan(resident, selective, recomputed)
        yield Plan(resident, True, shape.layers, offload=True)


def named(name: str, shape: Shape, gradient_checkpointing: bool, available: float) -> Plan:
    """The plan that `training.memory` names; `auto`: the fastest whose peak fits `available` bytes.

    When nothing fits, the plan that needs least: whether it runs is seen on the GPU.
    """
    fixed = {
        "resident": Plan(resident=_may_dequantize_once(shape)),
        "none": Plan(),
        "selective": Plan(selective=True),
        "full": Plan(selective=True, recomputed=shape.layers),
        "least": Plan(selective=True, recomputed=shape.layers, offload=True),
    }
    if name in fixed:
        plan = fixed[name]
        if gradient_checkpointing:
            plan = replace(plan, selective=True, recomputed=shape.layers)
        return plan
    allowed = [
        p for p in plans(shape) if not gradient_checkpointing or p.recomputed == shape.layers
    ]
    fitting = [p for p in allowed if peak_bytes(shape, p) <= USABLE * available]
    if not fitting:
        return min(allowed, key=lambda p: peak_bytes(shape, p))
    return min(fitting, key=lambda p: (relative_time(shape, p), peak_bytes(shape, p)))


def _may_dequantize_once(shape: Shape) -> bool:
    """Whether weights can be dequantized once: sharded ones stay in few bits."""
    return shape.quantized and shape.shards == 1


def leaner(shape: Shape, plan: Plan) -> Plan | None:
    """The next plan to try when the GPU's memory did not hold this one; weights stay as they are."""
    if plan.recomputed < shape.layers:
        left = (shape.layers - plan.recomputed) // 2
        return replace(plan, selective=True, recomputed=shape.layers - (left if left > 2 else 0))
    return None if plan.offload else replace(plan, offload=True)


@dataclass(frozen=True)
class Linear:
    """A linear layer of a decoder layer, and whether it gets an adapter."""

    into: int
    out: int
    adapted: bool


def shape_of(
    core: Any, head: Any, pattern: list[list[Linear]], *, rank: int, optimizer: str, tokens: int
) -> Shape:
    """The sizes of a loaded model; `pattern` has its linear layers by common input, as called.

    `core` is the model without its head.
    """
    layer, hidden = core.layers[0], core.config.hidden_size
    embedding = core.get_input_embeddings().weight
    tied = head.weight is embedding
    both = [embedding] if tied else [embedding, head.weight]
    return shape_from(
        pattern,
        layers=len(core.layers),
        hidden=hidden,
        heads=core.config.num_attention_heads,
        norms=sum(_is_norm(module, hidden) for module in layer.modules()),
        other_bytes=sum(x.numel() * x.element_size() for x in both),
        embedding_bytes=0 if tied else embedding.numel() * embedding.element_size(),
        element_bytes=embedding.element_size(),
        quantized=any(type(module).__name__ == "Linear4bit" for module in layer.modules()),
        rank=rank,
        optimizer=optimizer,
        tokens=tokens,
    )


def shape_from(
    pattern: list[list[Linear]],
    *,
    layers: int,
    hidden: int,
    heads: int,
    norms: int,
    other_bytes: int,
    embedding_bytes: int,
    element_bytes: int,
    quantized: bool,
    rank: int,
    optimizer: str,
    tokens: int,
) -> Shape:
    """The sizes from what is known of a model without loading it; `norms` of a layer.

    Of groups with one member the first is taken to read what attention gives, and all to write to the
    residual stream, which is kept as the next input.
    """
    linears = [linear for group in pattern for linear in group]
    attention = next((group[0].into for group in pattern if len(group) == 1), hidden)
    written = sum(linear.out for group in pattern if len(group) > 1 for linear in group)
    small = 2 * rank * len(pattern) + 2 * heads
    return Shape(
        layers=layers,
        linear=sum(linear.into * linear.out for linear in linears) * layers,
        other_bytes=other_bytes,
        embedding_bytes=embedding_bytes,
        adapter=rank
        * sum(linear.into + linear.out for linear in linears if linear.adapted)
        * layers,
        optimizer_bytes=OPTIMIZER_BYTES.get(optimizer, 8),
        hidden=hidden,
        kept=norms * hidden + sum(group[0].into for group in pattern) + written + small,
        kept_selective=norms * hidden + attention + written + small,
        widest=max(linear.into * linear.out for linear in linears),
        busy=3 * max(linear.into for linear in linears) + 2 * hidden,
        tokens=tokens,
        loss_bytes=12 * CHUNK_LOGITS,
        element_bytes=element_bytes,
        quantized=quantized,
    )


def _is_norm(module: Any, hidden: int) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and tuple(weight.shape) == (hidden,)
