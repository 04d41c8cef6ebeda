"""What a merge does to which weight, and every mismatch of base and adapter. Reads no weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts.errors import BaseModelError, MergeError
from tasks.contracts.recipe import Recipe
from tasks.merge.fold import kind_of, scale_of
from tasks.models import loading
from tasks.models.prepared_base import PreparedBase
from tasks.models.quantization import FOUR_BITS, config
from tasks.models.safetensors_headers import Header, Shapes, read_whole
from tasks.models.weight_files import weight_files

PREFIX = "base_model.model."  # PEFT's, before the base's own module names
# Settings under which PEFT merges by other formulas than tasks.merge.fold; training sets none of them.
UNSUPPORTED_SETTINGS = ("rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")
LORA_TENSORS = ("lora_A.weight", "lora_B.weight")
MAGNITUDE = "lora_magnitude_vector"  # DoRA's, one number a row
STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class MergePlan:
    """Weights of linear layers are named by their modules: `model.layers.0.self_attn.q_proj`."""

    shards: tuple[Path, ...]
    adapter: Path  # the safetensors file
    adapter_tensors: tuple[str, ...]  # of each adapted layer: the ends of their names
    scale: float  # of B A
    adapted: frozenset[str]
    # Quantized and dequantized before the adapter is added, as in training.
    quantized: frozenset[str]
    four_bits: frozenset[str]  # the only layers whose inputs PEFT casts to `dtype`
    quantization: str
    dtype: str  # the type that they were quantized from and computed in
    stored: str  # the type that the base's linear weights are stored in, as config.json names it
    # Whether any machine must be able to make the same bits of base and adapter again (register.as: adapter).
    exact: bool = False


def plan_merge(base: PreparedBase, adapter: Path, recipe: Recipe) -> MergePlan:
    """How to merge `adapter` into `base`. Raises MergeError with every mismatch, a line each."""
    config, file = _adapter_config(adapter), adapter / "adapter_model.safetensors"
    shards, quantization = weight_files(base.path), recipe.base.quantization
    shard_headers, adapter_header = [_header(shard) for shard in shards], _header(file)
    weights, lora = _shapes(shard_headers), _shapes([adapter_header])
    modules = frozenset(name.removeprefix(PREFIX).partition(".lora_")[0] for name in lora)
    dtype = (
        adapter_header.metadata.get("compute_dtype") or str(loading.compute_dtype()).split(".")[-1]
    )
    quantized, transposed = quantized_modules(base.path, quantization)
    onto_quantized = recipe.merge.onto == "quantized_base"
    problems = [
        *_kind_problems(base, config, recipe),
        *_shape_problems(config, modules, lora, weights),
        *(f"{name}: Conv1D layers (GPT-2's) cannot be merged" for name in modules & transposed),
        *(
            f"{name}: quantized in training, but the base stores no {name}.weight"
            for name in sorted(quantized)
            if onto_quantized and f"{name}.weight" not in weights
        ),
    ]
    if problems:
        raise MergeError.of(problems)
    return MergePlan(
        shards=tuple(shards),
        adapter=file,
        adapter_tensors=_tensors(config),
        scale=scale_of(config),
        adapted=modules,
        quantized=quantized if onto_quantized else frozenset(),
        four_bits=quantized if quantization in FOUR_BITS else frozenset(),
        quantization=quantization,
        dtype=dtype,
        stored=_stored(shard_headers, modules),
        exact=recipe.registration.kind == "adapter",
    )


def _tensors(config: dict[str, Any]) -> tuple[str, ...]:
    return (*LORA_TENSORS, MAGNITUDE) if config.get("use_dora") else LORA_TENSORS


def _header(file: Path) -> Header:
    try:
        return read_whole(file)
    except BaseModelError as error:
        raise MergeError(str(error)) from error


def _shapes(headers: Iterable[Header]) -> Shapes:
    return {tensor.name: tensor.shape for header in headers for tensor in header.tensors}


def _stored(shards: Iterable[Header], modules: frozenset[str]) -> str:
    """The one type that the adapted layers' weights are stored in, as config.json names it."""
    names = {f"{module}.weight" for module in modules}
    types = {tensor.dtype for shard in shards for tensor in shard.tensors if tensor.name in names}
    if len(types) != 1 or not types <= STORED.keys():
        raise MergeError(
            f"the base stores its linear weights as {', '.join(sorted(types))}; store all of them "
            f"in one of {', '.join(STORED)}"
        )
    return STORED[types.pop()]


def quantized_modules(base: Path, quantization: str) -> tuple[frozenset[str], frozenset[str]]:
    """Linear layers that transformers quantizes (not the head), and those stored transposed.

    Found by transformers' own rules on a model without weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(base, trust_remote_code=False)
        )
    transposed = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
    bnb_config = config(quantization, torch.float32)
    if bnb_config is None:
        return frozenset(), frozenset(transposed)
    keep = HfQuantizer.get_modules_to_not_convert(
        model, bnb_config.llm_int8_skip_modules, model._keep_in_fp32_modules
    )
    before = dict(model.named_modules())
    replace_with_bnb_linear(model, keep, bnb_config)
    quantized = {name for name, module in model.named_modules() if module is not before.get(name)}
    return frozenset(quantized), frozenset(transposed)


def _adapter_config(adapter: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    except (OSError, ValueError) as error:
        raise MergeError(f"{adapter} is no adapter: {error}; train it again") from error
    return config


def _kind_problems(base: PreparedBase, config: dict[str, Any], recipe: Recipe) -> list[str]:
    problems = [
        f"the adapter sets {name}, which cannot be merged"
        for name in UNSUPPORTED_SETTINGS
        if config.get(name)
    ]
    if (kind := kind_of(config)) != recipe.adapter.kind:
        problems.append(f"the adapter's kind is {kind}; adapter.kind is {recipe.adapter.kind}")
    if config.get("peft_type") != "LORA":
        problems.append(f"the adapter is {config.get('peft_type')}, not LoRA")
    trained_on = config.get("base_model_name_or_path")
    if trained_on != recipe.base.model:
        problems.append(
            f"the adapter was trained on {trained_on}; base.model is {recipe.base.model}"
        )
    if "quantization_config" in base.config:
        problems.append(f"{base.path} is quantized already; name the original model in base.model")
    return problems


def _shape_problems(
    config: dict[str, Any],
    modules: frozenset[str],
    lora: Shapes,
    weights: Shapes,
) -> list[str]:
    """Every layer that base and adapter do not both have, or have with other sizes."""
    problems, r = [], config["r"]
    expected = {f"{PREFIX}{name}.{part}" for name in modules for part in _tensors(config)}
    problems += [
        f"{name}: the adapter has this tensor, {kind_of(config)} does not"
        for name in lora.keys() - expected
    ]
    problems += [f"{name}: missing in the adapter" for name in expected - lora.keys()]
    for name in modules:
        shape = weights.get(f"{name}.weight")
        a, b = (lora.get(f"{PREFIX}{name}.lora_{part}.weight", ()) for part in "AB")
        if shape is None:
            problems.append(f"{name}: the adapter has it, the base does not")
        elif a and b and (b[0], a[-1]) != shape:
            problems.append(
                f"{name}: the adapter is {b[0]} x {a[-1]}, the base {' x '.join(map(str, shape))}"
            )
        elif a and b and (a[0], b[-1]) != (r, r):
            problems.append(
                f"{name}: rank {a[0]}, {b[-1]} in the weights, {r} in adapter_config.json"
            )
        lengths = lora.get(f"{PREFIX}{name}.{MAGNITUDE}", shape[:1] if shape else ())
        if shape and lengths != shape[:1]:
            problems.append(f"{name}: {lengths[0]} magnitudes for {shape[0]} rows")
    targets = tuple(f".{target}" for target in config["target_modules"])
    for weight in weights:
        name = weight.removesuffix(".weight")
        if name != weight and f".{name}".endswith(targets) and name not in modules:
            problems.append(f"{name}: the base has it, the adapter does not")
    return sorted(problems)
