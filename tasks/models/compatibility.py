"""Whether a recipe fits its base, from config.json and the weights' headers; nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts.recipe import Recipe
from tasks.models.prepared_base import BaseFolder
from tasks.models.safetensors_headers import Shapes
from tasks.serving.summarizer import CONTINUOUS_MODEL_TYPES

QUANTIZED = ("quantization_config", "quantization")  # transformers' and MLX's setting
FLOATS = ("BF16", "F16", "F32", "F64")
MERGED_TYPES = ("BF16", "F16", "F32")  # in which merged weights are stored
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
    if any(key in config for key in QUANTIZED):
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
    if config.get("model_type") not in SUPPORTED_MODEL_TYPES:
        problems += _unknown_problems(config, folder, recipe)
    elif why := _reads_otherwise(config, may_fill_gaps=False):
        problems.append(
            f"base.model: {folder}'s config.json says that it is a {config['model_type']}, {why}; correct "
            "it, or choose another base"
        )
    problems += _target_problems(recipe, base)
    # A quantized base has other types, and the fix stands there already.
    return problems if any(key in config for key in QUANTIZED) else problems + _types(recipe, base)


def _types(recipe: Recipe, base: BaseFolder) -> list[str]:
    """Weights stored in types that are no plain numbers, or that no merge can keep."""
    odd = sorted(
        t.dtype for t in base.stored if t.name.endswith(".weight") and t.dtype not in FLOATS
    )
    if odd:
        names = [t.name for t in base.stored if t.name.endswith(".weight") and t.dtype in odd]
        return [
            f"base.model: {base.path} stores {len(odd)} weights as {', '.join(sorted(set(odd)))} ({names[0]} "
            "is one): it is quantized; name the original, and choose base.quantization"
        ]
    adapted = {f"{name}.weight" for name in Layers.of(base.tensors).adapted(recipe)}
    types = sorted({tensor.dtype for tensor in base.stored if tensor.name in adapted})
    if len(types) > 1 or not set(types) <= set(MERGED_TYPES):
        return [
            f"base.model: {base.path} stores the weights that are adapted as {', '.join(types)}, and a "
            f"merge keeps one of {', '.join(MERGED_TYPES)}; save the model again in one of them"
        ]
    return []


def why_not_sharded(recipe: Recipe, config: dict[str, Any]) -> str:
    """Why this base's weights cannot be sharded over devices, with a fix; empty if they can."""
    if recipe.base.quantization == "int8":
        return "weights in int8 are not sharded; choose base.quantization nf4, fp4 or none"
    if recipe.adapter.kind == "dora":
        return "DoRA reads all weights at its start; choose adapter.kind lora or rslora"
    if (kind := config.get("model_type")) not in SUPPORTED_MODEL_TYPES:
        return f"it was not tried with {kind} models; choose another base"
    return ""


def _unknown_problems(settings: dict[str, Any], base: Path, recipe: Recipe) -> list[str]:
    # Five seconds of imports, but for uncommon architectures alone.
    from transformers.models.auto import (
        CONFIG_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
    )

    model_type = settings.get("model_type")
    # Not by `get`, which finds only what was looked up before
    config = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401
    if config not in MODEL_FOR_CAUSAL_LM_MAPPING:
        code = ""
        if settings.get("auto_map"):
            code = " (it names code of its own, auto_map, and precis runs none)"
        return [
            f"base.model: transformers has no language model of {base}'s type, {model_type}{code}; choose "
            "another base"
        ]
    if why := _reads_otherwise(settings, config in MODEL_FOR_MASKED_LM_MAPPING):
        return [f"base.model: {base} is a {model_type}, {why}; choose another base"]
    # Models older than its attention interface do not find the rows in their positions.
    if recipe.training.packing and not MODEL_FOR_CAUSAL_LM_MAPPING[config].is_backend_compatible():
        return [
            f"training.packing: rows would see each other in a {model_type} model; set it to false"
        ]
    return []


def _reads_otherwise(settings: dict[str, Any], may_fill_gaps: bool) -> str:
    """Why a model that transformers can load as a language model does not write text after text."""
    if settings.get("is_encoder_decoder"):
        return "an encoder and decoder, of which a language model would be half"
    if any(key in settings for key in ("vision_config", "audio_config")):
        return "which reads images or sound beside text, and precis trains on text alone"
    if may_fill_gaps and not settings.get("is_decoder"):
        return "an encoder: it sees words before they are written"
    return ""


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
