"""How much text a base reads, and RoPE scaled so that it reads more. Pure: a config in, a config out.

RoPE (Su et al. 2021, arXiv:2104.09864) turns pair i of a head's d rotated dimensions at position m by
the angle m * theta^(-2i/d). With s = context_tokens / the base's own maximum, past that maximum:

- ntk: theta' = theta * s^(d/(d-2)) (bloc97 2023, "NTK-Aware Scaled RoPE", r/LocalLLaMA; Peng et al.
  2023, arXiv:2309.00071, section 3.1): the fastest pair stays, the slowest turns s times as slowly.
- linear: every angle divided by s (Chen et al. 2023, arXiv:2306.15595; kaiokendev).
- dynamic: as ntk, by the length L of the current text: theta * (s * L / own - (s - 1))^(d/(d-2))
  past the own maximum, unscaled up to it (emozilla 2023, r/LocalLLaMA).
- yarn: pairs that turn more than 32 times within the own maximum stay, those that turn less than once
  are divided by s, a ramp between; cos and sin times 0.1 ln(s) + 1 (Peng et al. 2023, section 3.4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.contracts.recipe import Base

Config = dict[str, Any]  # a config.json

# What transformers takes where a config.json names none; only architectures whose angles a test holds
# against the formulas, for in others (several RoPEs, parts of a head) d is another number.
THETA = 10_000.0
PARTIAL = {"phi": 0.5, "stablelm": 0.25}  # share of a head that is rotated
HEAD = {"gemma": 256, "gemma2": 256, "qwen3": 128}
FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "phi", "gemma", "gemma2"),
    *("granite", "olmo2", "stablelm", "starcoder2"),
)


def length(config: Config) -> int | None:
    """The most tokens a model reads at once; None where its config does not say.

    A linearly or dynamically scaled model keeps its old maximum in `max_position_embeddings`, which
    transformers and vLLM multiply by the factor, and the new one in `max_sequence_length`.
    """
    tokens = config.get("max_sequence_length") or config.get("max_position_embeddings")
    return int(tokens) if tokens else None


def own_length(config: Config) -> int | None:
    """The most tokens that a model read before `scaled` stretched it, if it did."""
    tokens = config.get("original_max_position_embeddings")
    return int(tokens) if tokens else length(config)


def rotary_width(config: Config) -> int:
    """The d of the formulas: how many dimensions of a head are rotated.

    All of them for Llama; for Phi-2 the first 0.4 of its 80. The exponents -2i/d run over the rotated
    dimensions alone, so the slowest pair turns by theta^(-(d-2)/d) a token; that this becomes s times
    slower is what gives theta' its exponent. With the head size for d it would miss s.
    """
    family = config.get("model_type", "")
    head = config.get("head_dim") or HEAD.get(family)
    head = head or config["hidden_size"] // config["num_attention_heads"]
    return int(head * _partial(config)) if family in PARTIAL else int(head)


def scaled(config: Config, tokens: int, rope: str) -> Config:
    """The config.json of a base whose context is stretched to `tokens` by method `rope`.

    Written so that every reader finds the same angles: transformers 5 (`rope_parameters`), 4 and vLLM
    (`rope_theta`, `rope_scaling`). To be called when `problems` finds none.
    """
    own = length(config)
    assert own is not None
    parameters = _parameters(config)
    if rope == "ntk":
        width = rotary_width(config)
        parameters["rope_theta"] *= (tokens / own) ** (width / (width - 2))
    else:
        parameters |= {"rope_type": rope, "factor": tokens / own}
    if rope == "yarn":
        parameters["original_max_position_embeddings"] = own
    if "partial_rotary_factor" in parameters:
        config = config | {"partial_rotary_factor": parameters["partial_rotary_factor"]}
    # For these, readers take it as the maximum before the factor.
    before = rope in ("linear", "dynamic")
    return config | {
        "max_position_embeddings": own if before else tokens,
        "max_sequence_length": tokens,
        "original_max_position_embeddings": own,
        "rope_parameters": parameters,
        "rope_theta": parameters["rope_theta"],
        # If it is set, transformers 5 reads it in place of rope_parameters.
        "rope_scaling": None if rope == "ntk" else dict(parameters),
    }


def problems(config: Config, base: Base, path: Path) -> list[str]:
    """Why `base.context_tokens` and `base.rope` do not fit the base in `path`, each with its fix."""
    tokens, own = base.context_tokens, length(config)
    if tokens is None:
        return []
    if base.rope is None:
        if own is None or tokens <= own:
            return []
        return [
            f"base.context_tokens ({tokens}) is past the {own} tokens that {path} reads: set base.rope "
            "(ntk, linear, dynamic or yarn) to scale its positions, or lower base.context_tokens"
        ]
    problems = _unscalable(config, path)
    if own is None:
        problems.append(
            f"{path}/config.json names no max_position_embeddings, so base.rope cannot know what to "
            "scale from; add it there"
        )
    elif tokens <= own:
        problems.append(
            f"base.rope is {base.rope}, but {path} reads {own} tokens by itself and "
            f"base.context_tokens is {tokens}: there is nothing to scale; leave base.rope out"
        )
    return problems


def _unscalable(config: Config, path: Path) -> list[str]:
    """Why `scaled` would not give the angles of its formulas; at most one reason."""
    family, leave = config.get("model_type"), "or leave base.rope out"
    if family not in FAMILIES:
        return [
            f"base.rope: {path} is of model_type {family}, which has no RoPE or one that precis "
            f"cannot scale; name a base of {', '.join(FAMILIES)}, {leave}"
        ]
    given = _given(config)
    if any(isinstance(value, dict) for value in given.values()):
        return [f"base.rope: {path} has a RoPE for each kind of layer; name another base, {leave}"]
    kind = given.get("rope_type", given.get("type", "default"))
    if kind != "default":
        return [
            f"base.rope: the RoPE of {path} is scaled already ({kind}, factor "
            f"{given.get('factor', 'unnamed')}); name the model it was made from, {leave} to use the "
            f"{length(config)} tokens it has"
        ]
    if (width := rotary_width(config)) <= 2:
        return [f"base.rope: {path} rotates {width} dimensions a head, too few to scale; {leave}"]
    return []


def _given(config: Config) -> Config:
    """The config's settings of RoPE, in transformers 5's form or the older one."""
    return config.get("rope_scaling") or config.get("rope_parameters") or {}


def _parameters(config: Config) -> Config:
    """An unscaled RoPE in transformers 5's form, defaults written out."""
    parameters = {"rope_theta": config.get("rope_theta") or THETA, **_given(config)}
    parameters.pop("type", None)
    if config.get("model_type") in PARTIAL:
        parameters["partial_rotary_factor"] = _partial(config)
    return parameters | {"rope_type": "default"}


def _partial(config: Config) -> float:
    given = _given(config).get("partial_rotary_factor") or config.get("partial_rotary_factor")
    return float(given or PARTIAL.get(config.get("model_type", ""), 1.0))
