"""Give a PEFT model's linear layers the one operation of `linear`, group by group.

A group is all linear layers of a decoder layer that read the same tensor (queries, keys and values;
gate and up; in Phi these and fc1). Which those are is seen by watching one layer at work, so no
architecture is named here.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch

from tasks.train.fast_path import lora_linear


class Group:
    """Linear layers that read one input, in the order in which they are called.

    The first call computes all; the others, with the very same tensor, are handed theirs. A layer
    without an adapter takes part with one of rank 0.
    """

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.bare = [not hasattr(layer, "lora_A") for layer in layers]
        weights = [lora_linear.frozen(base_of(layer)) for layer in layers]
        self.parts = [part for weight in weights for part in weight.parts]
        device = self.parts[0].device
        self.biases = _biases(weights, device)
        self.scale = next((_scale(layer) for layer in layers if _scale(layer)), 1.0)
        self.no_down = [torch.zeros(0, w.shape[1], device=device) for w in weights]
        self.no_up = [torch.zeros(w.shape[0], 0, device=device) for w in weights]
        self.input: Any = None
        self.found: Any = None

    def __call__(self, x: torch.Tensor, place: int) -> torch.Tensor:
        """The output of layer `place` for x [..., in]."""
        if place == 0:
            down, up = [], []
            for i, layer in enumerate(self.layers):
                down.append(self.no_down[i] if self.bare[i] else layer.lora_A["default"].weight)
                up.append(self.no_up[i] if self.bare[i] else layer.lora_B["default"].weight)
            self.input = x
            self.found = lora_linear.adapted(x, self.parts, self.biases, down, up, self.scale)
        if self.input is not x:
            raise RuntimeError("layers that were seen to read one tensor now read several")
        found: torch.Tensor = self.found[place]
        if place == len(self.layers) - 1:
            self.input = self.found = None
        return found


def base_of(layer: Any) -> Any:
    """The layer itself, or the one that an adapter stands on."""
    return layer.get_base_layer() if hasattr(layer, "lora_A") else layer


def _scale(layer: Any) -> float:
    """An adapter's scale; 0 for a layer without one."""
    return float(layer.scaling["default"]) if hasattr(layer, "lora_A") else 0.0


def _biases(weights: list[lora_linear.Frozen], device: Any) -> list[torch.Tensor]:
    """One a layer, or none at all; a layer without one among others gets zeros."""
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
    found: torch.Tensor = group(x, place)
    return found


def linears(layer: Any) -> dict[str, Any]:
    """The linear layers of a decoder layer by name, with their adapters where they have one."""
    from peft.tuners.lora import LoraLayer

    found: dict[str, Any] = {}
    for name, module in layer.named_modules():
        if any(name.startswith(f"{above}.") for above in found):
            continue
        plain = type(module) is torch.nn.Linear or type(module).__name__ == "Linear4bit"
        if plain or isinstance(module, LoraLayer):
            found[name] = module
    return found


def unknown(model: Any, core: Any) -> list[str]:
    """Why this model's adapters cannot be given the operation; nothing when they can."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for layer in core.layers for module in linears(layer).values()]
    known = {id(layer) for layer in layers}
    found = {
        f"an adapter on a {type(module).__name__} outside the decoder's linear layers"
        for module in model.modules()
        if isinstance(module, BaseTunerLayer) and id(module) not in known
    }
    for layer in layers:
        found |= set(_unknown_of(layer))
    return sorted(found)


def _unknown_of(layer: Any) -> list[str]:
    problems = []
    try:
        lora_linear.frozen(base_of(layer))
    except (ValueError, AttributeError) as error:
        problems.append(str(error))
    if not hasattr(layer, "lora_A"):
        return problems
    if list(layer.active_adapters) != ["default"] or layer.merged or layer.disable_adapters:
        return [*problems, "several adapters, a merged one or one that is switched off"]
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
    """Group the linear layers of every decoder layer as `pattern` says, and give them the operation.

    Raises ValueError where a decoder layer has others than the first.
    """
    names = {name for group in pattern for name in group}
    groups = []
    for number, layer in enumerate(core.layers):
        here = linears(layer)
        if set(here) != names:
            raise ValueError(f"decoder layer {number} has other linear layers than layer 0")
        for wanted in pattern:
            group = Group([here[name] for name in wanted])
            groups.append(group)
            for place, member in enumerate(group.layers):
                member.precis_group = (group, place)
                member.forward = types.MethodType(_forward, member)
    return groups


def pattern_of(layer: Any, watch: Callable[[], object]) -> list[list[str]]:
    """Names of `layer`'s linear layers, those that read the same tensor together, as called.

    `watch()` runs the decoder once on a few tokens. Raises ValueError for a layer that is not
    called exactly once.
    """
    calls: list[tuple[str, Any]] = []  # the inputs are kept: a freed one's id could come again
    here = linears(layer)

    def note(name: str) -> Callable[[Any, Any], None]:
        return lambda _, args: calls.append((name, args[0]))

    handles = [member.register_forward_pre_hook(note(name)) for name, member in here.items()]
    try:
        watch()
    finally:
        for handle in handles:
            handle.remove()
    if sorted(name for name, _ in calls) != sorted(here):
        raise ValueError("a linear layer is not called exactly once in a forward pass")
    scales = {_scale(member) for member in here.values()} - {0.0}
    groups: dict[tuple[int, float], list[str]] = {}
    for name, x in calls:
        scale = _scale(here[name]) if len(scales) > 1 else 0.0
        groups.setdefault((id(x), scale), []).append(name)
    return list(groups.values())
