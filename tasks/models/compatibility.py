"""Whether a recipe fits its base, from config.json and the weights' headers; nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts.recipe import Recipe
from tasks.models.prepared_base import BaseFolder
from tasks.models.safetensors_headers import Shapes
from tasks.serving.summarizer import CONTINUOUS_MODEL_TYPES

HEADS = {"lm_head", "embed_out", "output"}
EMBEDDINGS = {"wte", "wpe"}  # those whose name does not say so
# transformers' model types whose attention tasks.train.attention computes as they do: a test
# (tests/train/test_train_shapes.py) shows it for each. Others keep their own.
SUPPORTED_MODEL_TYPES = CONTINUOUS_MODEL_TYPES | {"gemma", "gemma2", "gemma3_text"}
TRANSPOSED = {"gpt2", "openai-gpt"}  # model types whose linear layers are Conv1D


@dataclass(frozen=True)
class Layers:
    """A base's matrices, by the module that holds them: shape [out_features, in_features]."""

    inner: Shapes  # linear layers that are quantized and adapted: neither embeddings nor the head
    others: Shapes

    @classmethod
    def of(cls, tensors: Shapes) -> Layers:
        """Sorted by name: common architectures agree on the names of head and embeddings only."""
        matrices = {
            name.removesuffix(".weight"): shape
            for name, shape in tensors.items()
            if len(shape) == 2 and name.endswith(".weight")
        }
        outer = {name for name in matrices if _is_embedding(name) or _is_head(name)}
        return cls(
            {name: shape for name, shape in matrices.items() if name not in outer},
            {name: shape for name, shape in matrices.items() if name in outer},
        )

    def adapted(self, recipe: Recipe) -> Shapes:
        """The inner layers that the recipe's adapter is put on."""
        targets = recipe.adapter.target_modules
        if isinstance(targets, str):
            return self.inner
        return {name: shape for name, shape in self.inner.items() if _ends(name, targets)}


def problems(recipe: Recipe, base: BaseFolder) -> list[str]:
    """What would stop training or merging this recipe on this base, each with its fix."""
    config, folder = base.config, base.path
    problems = []
    if "quantization_config" in config:
        problems.append(
            f"base.model: {folder} is quantized already; name the original, and choose "
            "base.quantization"
        )
    if config.get("model_type") in TRANSPOSED:
        problems.append(
            f"base.model: {folder} is a {config['model_type']}, whose layers (Conv1D) cannot be merged; "
            "choose another base"
        )
    if recipe.training.base_weights == "sharded" and (why := why_not_sharded(recipe, config)):
        problems.append(f"training.base_weights: sharded: {why}; or set base_weights to replicated")
    if (kind := config.get("model_type")) not in SUPPORTED_MODEL_TYPES:
        problems += _unknown_problems(kind, folder, recipe)
    return problems + _target_problems(recipe, base)


def why_not_sharded(recipe: Recipe, config: dict[str, Any]) -> str:
    """Why this base's weights cannot be sharded over devices, with a fix; empty if they can."""
    if recipe.base.quantization == "int8":
        return "weights in int8 are not sharded; choose base.quantization nf4, fp4 or none"
    if recipe.adapter.kind == "dora":
        return "DoRA reads all weights at its start; choose adapter.kind lora or rslora"
    if (kind := config.get("model_type")) not in SUPPORTED_MODEL_TYPES:
        return f"it was not tried with {kind} models; choose another base"
    return ""


def _unknown_problems(model_type: str | None, base: Path, recipe: Recipe) -> list[str]:
    # Five seconds of imports, but for uncommon architectures alone.
    from transformers.models.auto import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    # Not by `get`, which finds only what was looked up before
    config = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401
    if config not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return [
            f"base.model: transformers has no language model of {base}'s type, {model_type}; choose "
            "another base"
        ]
    # Models older than its attention interface do not find the rows in their positions.
    if recipe.training.packing and not MODEL_FOR_CAUSAL_LM_MAPPING[config].is_backend_compatible():
        return [
            f"training.packing: rows would see each other in a {model_type} model; set it to false"
        ]
    return []


def _target_problems(recipe: Recipe, base: BaseFolder) -> list[str]:
    targets, layers = recipe.adapter.target_modules, Layers.of(base.tensors)
    endings = ", ".join(sorted({_last(name) for name in layers.inner}))
    if not layers.inner:
        return [
            f"base.model: {base.path} has no linear layers besides its head; choose another base"
        ]
    if isinstance(targets, str):
        return []
    problems = []
    missing = [t for t in targets if not any(_ends(name, [t]) for name in layers.inner)]
    # A tied head is no tensor of its own.
    outer = [t for t in missing if _last(t) in HEADS or any(_ends(n, [t]) for n in layers.others)]
    if outer:
        problems.append(
            f"adapter.target_modules: {', '.join(outer)} cannot be adapted, being the head (its loss "
            f"is computed from the weights alone) or an embedding; choose among {endings}"
        )
    if missing := [t for t in missing if t not in outer]:
        problems.append(
            f"adapter.target_modules: {base.path} has no layer {', '.join(missing)}; it has {endings}"
        )
    return problems


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_embedding(name: str) -> bool:
    return _last(name) in EMBEDDINGS or ("embed" in _last(name) and _last(name) not in HEADS)


def _is_head(name: str) -> bool:
    """Of that name, and in no numbered layer."""
    return _last(name) in HEADS and not any(part.isdigit() for part in name.split("."))


def _ends(name: str, targets: list[str] | tuple[str, ...]) -> bool:
    """As PEFT matches `target_modules`."""
    return any(name == target or name.endswith(f".{target}") for target in targets)
