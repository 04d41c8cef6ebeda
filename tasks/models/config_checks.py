"""Whether the values in config.json can be meant: pure, before anything computes with them.

transformers checks types too (tasks.models.architecture asks it), but imports torch, and builds as many
layers as a file tells it to; estimates divide by these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks.models.rope import Config
from tasks.models.safetensors_headers import Shapes

REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
WIDTHS = ("hidden_size", "vocab_size", "intermediate_size", "head_dim")
LENGTHS = ("max_position_embeddings", "max_sequence_length", "original_max_position_embeddings")
# What may be left out, or be null.
OPTIONAL = ("intermediate_size", "num_key_value_heads", "head_dim", "sliding_window")
# Names of what a model is built of, one after the other.
LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers"}
LAYERS |= {"encoder_layers", "num_decoder_layers"}
EXPERTS = {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}
PLAUSIBLE = 2**20  # wide; below it transformers names the tensors whose shapes differ
MOST = 2**40  # nothing in a model is counted in more


def count(config: Config, name: str, default: int = 0) -> int:
    """A whole number in the config of any architecture; `default` where it has none of that name."""
    value: Any = config.get(name)
    return int(value) if _is_count(value) else default


def problems(config: Config, path: Path, known: bool) -> list[str]:
    """Values that no model has; `known`: of an architecture whose settings have these names."""
    file, kind = path / "config.json", config.get("model_type")
    if not isinstance(kind, str) or not kind:
        code = ""
        if config.get("auto_map"):
            code = "; it names code of its own (auto_map), and precis runs none"
        return [
            f"{file} names no model_type (it is {_shown(kind)}), so it is no model that transformers "
            f"knows{code}; fetch it again, or choose another base"
        ]
    names = (*LENGTHS, *REQUIRED, *OPTIONAL) if known else LENGTHS
    found = []
    if known:
        found = [
            f"{file} has no {name}; fetch it again" for name in REQUIRED if config.get(name) is None
        ]
    found += [
        f"{file}: {name} must be a whole number above 0 (it is {_shown(config[name])}); correct it, "
        "or fetch the file again"
        for name in names
        if config.get(name) is not None and not _is_count(config[name])
    ]
    if not found and known:
        found = _head_problems(config, file)
    found += _number_problems(config, file)
    return [*found, *_rope_problems(config, file), *token_id_problems(config, file, config)]


def _number_problems(config: Config, file: Path) -> list[str]:
    """Shares that are none, and numbers that would make every output NaN."""
    return [
        f"{file}: {name} must be {range_name} (it is {_shown(value)}); correct it, or fetch the file again"
        for name, value in config.items()
        for ending, range_name, fits in RANGES
        if name.endswith(ending) and value is not None and not fits(value)
    ]


def token_id_problems(values: Config, file: Path, config: Config) -> list[str]:
    """Ids of special tokens in a JSON file that are no tokens of the model's."""
    vocabulary, found = count(config, "vocab_size", MOST), []
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = values.get(name)
        ids = given if isinstance(given, list) and name == "eos_token_id" else [given]
        lowest = -1 if name == "pad_token_id" else 0  # -1: none, in the first Llama's config
        if given is not None and not all(
            type(token) is int and lowest <= token < vocabulary for token in ids
        ):
            found.append(
                f"{file}: {name} is {_shown(given)}, which is no token of the model's {vocabulary}; "
                "correct it, or fetch the file again"
            )
    return found


def problems_with(config: Config, shapes: Shapes, path: Path, known: bool) -> list[str]:
    """Sizes in config.json that are past all that the weights hold: nothing is built from such numbers."""
    largest = max((max(shape, default=0) for shape in shapes.values()), default=0)
    tensors, both = len(shapes), "the two belong to different models: fetch both again"
    found = [
        f"{name} is {config[name]}, and the largest tensor of the weights is {largest} wide; {both}"
        for name in WIDTHS
        if known and count(config, name) > max(largest, PLAUSIBLE)
    ]
    for name, value in _numbers(config):
        last = name.rpartition(".")[2]
        if last in LAYERS and value > tensors:
            found.append(f"{name} is {value}, and the weights are {tensors} tensors; {both}")
        if last in EXPERTS and value > max(largest, tensors):
            found.append(f"{name} is {value}, more than the weights hold; {both}")
    return [f"{path / 'config.json'}: {problem}" for problem in found]


def _numbers(config: Config, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, int]]:
    """Every whole number in the config, by dotted name."""
    for name, value in config.items():
        if type(value) is int:
            yield f"{prefix}{name}", value
        elif isinstance(value, dict) and depth < 4:
            yield from _numbers(value, f"{prefix}{name}.", depth + 1)


def _head_problems(config: Config, file: Path) -> list[str]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    found = []
    if not config.get("head_dim") and hidden % heads:
        found.append(f"{file}: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    if heads % key_heads:
        found.append(
            f"{file}: num_attention_heads {heads} is no multiple of num_key_value_heads {key_heads}"
        )
    return [f"{problem}; correct it, or fetch the file again" for problem in found]


def _rope_problems(config: Config, file: Path) -> list[str]:
    found = []
    for name in ("rope_theta", "partial_rotary_factor"):
        if config.get(name) is not None and not _is_positive(config[name]):
            found.append(f"{name} must be a number above 0 (it is {_shown(config[name])})")
    for name in ("rope_parameters", "rope_scaling"):
        given = config.get(name)
        if given is None:
            continue
        if not isinstance(given, dict):
            found.append(f"{name} must be an object or null (it is {_shown(given)})")
            continue
        inner = [given, *(value for value in given.values() if isinstance(value, dict))]
        found += [
            f"{name}.{key} must be a number above 0 (it is {_shown(part[key])})"
            for part in inner
            for key in ("rope_theta", "factor", "partial_rotary_factor")
            if part.get(key) is not None and not _is_positive(part[key])
        ]
    return [f"{file}: {problem}; correct it, or fetch the file again" for problem in found]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < MOST


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


# By the ends of names: what values must be.
RANGES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("dropout", "from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    ("pdrop", "from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    ("norm_eps", "above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1),
    ("norm_epsilon", "above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1),
    ("logit_softcapping", "above 0", _is_positive),
    ("query_pre_attn_scalar", "above 0", _is_positive),
)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
