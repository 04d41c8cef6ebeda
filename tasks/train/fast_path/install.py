"""Install the operation of lora_linear in a PEFT model's linear layers, group by group.

A group is all linear layers of a decoder layer that read the same tensor (queries, keys and values;
gate and up; in Phi the first three and fc1). They are found by watching one layer's forward pass, so
no architecture is named here.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch

from tasks.train.fast_path import lora_linear


class Group:
    """Linear layers that read the same input, in the order in which they are called.

    The first call computes all outputs; the other calls, with the very same tensor, return theirs. A
    layer without an adapter gets one of rank 0.
    """

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.unadapted = [not hasattr(layer, "lora_A") for layer in layers]
        weights = [lora_linear.frozen(base_of(layer)) for layer in layers]
        self.parts = [part for weight in weights for part in weight.parts]
        device = self.parts[0].device
        self.biases = _biases(weights, device)
        self.scale = next((_scale(layer) for layer in layers if _scale(layer)), 1.0)
        self.no_down = [torch.zeros(0, w.shape[1], device=device) for w in weights]
        self.no_up = [torch.zeros(w.shape[0], 0, device=device) for w in weights]
        self.input: Any = None
        self.outputs: Any = None

    def __call__(self, x: torch.Tensor, place: int) -> torch.Tensor:
        """The output of layer `place` for x [..., in]."""
        if place == 0:
            down, up = [], []
            for i, layer in enumerate(self.layers):
                down.append(
                    self.no_down[i] if self.unadapted[i] else layer.lora_A["default"].weight
                )
                up.append(self.no_up[i] if self.unadapted[i] else layer.lora_B["default"].weight)
            self.input = x
            self.outputs = lora_linear.adapted(x, self.parts, self.biases, down, up, self.scale)
        if self.input is not x:
            raise RuntimeError(
                "linear layers that read the same tensor before now read different ones"
            )
        output: torch.Tensor = self.outputs[place]
        if place == len(self.layers) - 1:
            self.input = self.outputs = None
        return output


def base_of(layer: Any) -> Any:
    """The layer itself, or the one below its adapter."""
    return layer.get_base_layer() if hasattr(layer, "lora_A") else layer


def _scale(layer: Any) -> float:
    """The adapter's scale; 0 for a layer without an adapter."""
    return float(layer.scaling["default"]) if hasattr(layer, "lora_A") else 0.0


def _biases(weights: list[lora_linear.Frozen], device: Any) -> list[torch.Tensor]:
    """One bias a layer, or an empty list; a layer without a bias among others gets zeros."""
    dtypes = [weight.bias.dtype for weight in weights if weight.bias is not None]
    if not dtypes:
        return []
    return [
        torch.zeros(weight.shape[0], dtype=dtypes[0], device=device)
        if weight.bias is None
        else weight.bias
        for weight in weights
    ]


def _forward(self: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    group, place = self.precis_group
    output: torch.Tensor = group(x, place)
    return output


def linears(layer: Any) -> dict[str, Any]:
    """The linear layers of a decoder layer by name; an adapted one as PEFT's layer."""
    from peft.tuners.lora import LoraLayer

    by_name: dict[str, Any] = {}
    for name, module in layer.named_modules():
        if any(name.startswith(f"{above}.") for above in by_name):
            continue
        is_linear = type(module) is torch.nn.Linear or type(module).__name__ == "Linear4bit"
        if is_linear or isinstance(module, LoraLayer):
            by_name[name] = module
    return by_name


def unsupported(model: Any, core: Any) -> list[str]:
    """Why the operation does not support this model's adapters; an empty list when it does."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for layer in core.layers for module in linears(layer).values()]
    supported = {id(layer) for layer in layers}
    reasons = {
        f"an adapter on a {type(module).__name__} outside the decoder's linear layers"
        for module in model.modules()
        if isinstance(module, BaseTunerLayer) and id(module) not in supported
    }
    for layer in layers:
        reasons |= set(_unsupported(layer))
    return sorted(reasons)


def _unsupported(layer: Any) -> list[str]:
    problems = []
    try:
        lora_linear.frozen(base_of(layer))
    except (ValueError, AttributeError) as error:
        problems.append(str(error))
    if not hasattr(layer, "lora_A"):
        return problems
    if list(layer.active_adapters) != ["default"] or layer.merged or layer.disable_adapters:
        return [*problems, "several adapters, a merged one or a disabled one"]
    if "default" not in layer.lora_A:
        return [*problems, f"an adapter of type {type(layer).__name__}"]
    if layer.lora_variant:
        problems.append("a variant of LoRA")
    if layer.lora_bias["default"] or getattr(layer, "fan_in_fan_out", False):
        problems.append("a LoRA layer with a bias, or stored transposed")
    if not isinstance(layer.lora_dropout["default"], torch.nn.Identity):
        problems.append("adapter.lora_dropout above 0")
    return problems


def install(core: Any, pattern: list[list[str]]) -> list[Group]:
    """Group the linear layers of every decoder layer by `pattern`, and install the operation.

    Raises ValueError where a decoder layer has other linear layers than the first.
    """
    names = {name for group in pattern for name in group}
    groups = []
    for number, layer in enumerate(core.layers):
        by_name = linears(layer)
        if set(by_name) != names:
            raise ValueError(f"decoder layer {number} has other linear layers than layer 0")
        for group_names in pattern:
            group = Group([by_name[name] for name in group_names])
            groups.append(group)
            for place, member in enumerate(group.layers):
                member.precis_group = (group, place)
                member.forward = types.MethodType(_forward, member)
    return groups


def pattern_of(layer: Any, watch: Callable[[], object]) -> list[list[str]]:
    """Names of `layer`'s linear layers in the order of their calls, grouped by the tensor they read.

    `watch()` runs the decoder once on a few tokens. Raises ValueError for a layer that is not
    called exactly once.
    """
    calls: list[tuple[str, Any]] = []  # holds the inputs: the id of a freed one could be reused
    by_name = linears(layer)

    def record(name: str) -> Callable[[Any, Any], None]:
        return lambda _, args: calls.append((name, args[0]))

    handles = [member.register_forward_pre_hook(record(name)) for name, member in by_name.items()]
    try:
        watch()
    finally:
        for handle in handles:
            handle.remove()
    if sorted(name for name, _ in calls) != sorted(by_name):
        raise ValueError("a linear layer is not called exactly once in a forward pass")
    scales = {_scale(member) for member in by_name.values()} - {0.0}
    groups: dict[tuple[int, float], list[str]] = {}
    for name, x in calls:
        scale = _scale(by_name[name]) if len(scales) > 1 else 0.0
        groups.setdefault((id(x), scale), []).append(name)
    return list(groups.values())
