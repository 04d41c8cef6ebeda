"""Does a recipe fit its base? Found from config.json and the weights' headers, before either is loaded."""

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
# transformers' model types whose own attention tasks.train.attention is known to compute: a test
# (tests/train/test_train_shapes.py) shows it of each. Others are left their own.
KNOWN = CONTINUOUS_MODEL_TYPES | {"gemma", "gemma2", "gemma3_text"}
TRANSPOSED = {"gpt2", "openai-gpt"}  # model types whose linear layers are Conv1D


@dataclass(frozen=True)
class Layers:
    """A base's matrices, by the module that holds them: shape [out_features, in_features]."""

    inner: Shapes  # linear layers that are quantized and adapted: neither embeddings nor the head
    others: Shapes

    @classmethod
    def of(cls, tensors: Shapes) -> Layers:
        """Sorted by name: common architectures differ in all but the names of head and embeddings."""
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
        """Those of the inner layers that the recipe's adapter is put on."""
        wanted = recipe.adapter.target_modules
        if isinstance(wanted, str):
            return self.inner
        return {name: shape for name, shape in self.inner.items() if _ends(name, wanted)}


def problems(recipe: Recipe, base: BaseFolder) -> list[str]:
    """What would stop training or merging this recipe on this base, each with its fix."""
    config, folder = base.config, base.path
    found = []
    if "quantization_config" in config:
        found.append(
            f"base.model: {folder} is quantized already; name the original, and choose "
            "base.quantization"
        )
    if config.get("model_type") in TRANSPOSED:
        found.append(
            f"base.model: {folder} is a {config['model_type']}, whose layers (Conv1D) cannot be merged; "
            "choose another base"
        )
    if recipe.training.base_weights == "sharded" and (why := why_not_sharded(recipe, config)):
        found.append(f"training.base_weights: sharded: {why}; or set base_weights to replicated")
    if (kind := config.get("model_type")) not in KNOWN:
        found += _unknown_problems(kind, folder, recipe)
    return found + _target_problems(recipe, base)


def why_not_sharded(recipe: Recipe, config: dict[str, Any]) -> str:
    """Why this base's weights cannot rest on several devices in parts, with a mend; nothing if they can."""
    if recipe.base.quantization == "int8":
        return "weights in int8 are not shared out; choose base.quantization nf4, fp4 or none"
    if recipe.adapter.kind == "dora":
        return "DoRA reads all weights at its start; choose adapter.kind lora or rslora"
    if (kind := config.get("model_type")) not in KNOWN:
        return f"it was not tried with {kind} models; choose another base"
    return ""


def _unknown_problems(model_type: str | None, base: Path, recipe: Recipe) -> list[str]:
    # Five seconds of imports, but for uncommon architectures alone.
    from transformers.models.auto import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    # Not by `get`, which knows only what was looked up before
    config = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401
    if config not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return [
            f"base.model: transformers has no language model of {base}'s type, {model_type}; choose "
            "another base"
        ]
    # Models from before its attention interface do not look for rows in their positions.
    if recipe.training.packing and not MODEL_FOR_CAUSAL_LM_MAPPING[config].is_backend_compatible():
        return [
            f"training.packing: rows would see each other in a {model_type} model; set it to false"
        ]
    return []


def _target_problems(recipe: Recipe, base: BaseFolder) -> list[str]:
    wanted, layers = recipe.adapter.target_modules, Layers.of(base.tensors)
    endings = ", ".join(sorted({_last(name) for name in layers.inner}))
    if not layers.inner:
        return [
            f"base.model: {base.path} has no linear layers besides its head; choose another base"
        ]
    if isinstance(wanted, str):
        return []
    found = []
    missing = [w for w in wanted if not any(_ends(name, [w]) for name in layers.inner)]
    # A tied head is no tensor of its own.
    outer = [w for w in missing if _last(w) in HEADS or any(_ends(n, [w]) for n in layers.others)]
    if outer:
        found.append(
            f"adapter.target_modules: {', '.join(outer)} cannot be adapted, being the head (its loss "
            f"is computed from the weights alone) or an embedding; choose among {endings}"
        )
    if missing := [w for w in missing if w not in outer]:
        found.append(
            f"adapter.target_modules: {base.path} has no layer {', '.join(missing)}; it has {endings}"
        )
    return found


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_embedding(name: str) -> bool:
    return _last(name) in EMBEDDINGS or ("embed" in _last(name) and _last(name) not in HEADS)


def _is_head(name: str) -> bool:
    """Of that name, and in no numbered layer."""
    return _last(name) in HEADS and not any(part.isdigit() for part in name.split("."))


def _ends(name: str, wanted: list[str] | tuple[str, ...]) -> bool:
    """As PEFT matches `target_modules`."""
    return any(name == w or name.endswith(f".{w}") for w in wanted)
