"""Scaled RoPE: the angles of loaded models against the published formulas, in float64.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.contracts.recipe import Base
from tasks.models import loading, rope_view
from tasks.models import rope as scaling

OWN, WANTED = 64, 160  # s = 2.5
METHODS = ("ntk", "linear", "dynamic", "yarn")
SMALL = {
    "vocab_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "max_position_embeddings": OWN,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Heads as wide as the true ones; what Phi-2 rotates: 0.4 of 80, 32 dimensions.
LLAMA = SMALL | {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 2}
PHI = SMALL | {
    "model_type": "phi",
    "hidden_size": 160,
    "num_attention_heads": 2,
    "partial_rotary_factor": 0.4,
}
SHAPES = {"llama": (LLAMA, 128), "phi": (PHI, 32)}
# A frequency is theta^-x in float32: the rounding of x and of the power, half of 2^-23 each, the first
# times ln(theta), about 10. Three times that; a wrong exponent is off by 1e-3 and more.
FREQUENCY = 16 * 2**-23
ANGLE = WANTED * FREQUENCY  # a frequency's error grows with the position that it is multiplied with
Angles = np.ndarray[Any, np.dtype[np.float64]]


def unscaled_angles(d: int, theta: float = 10_000.0) -> Angles:
    """theta^(-2i/d), radians a token."""
    return theta ** -(np.arange(0, d, 2, dtype=np.float64) / d)


def ntk(d: int, s: float, theta: float = 10_000.0) -> Angles:
    """bloc97's: the base changed so that the slowest pair turns s times as slowly."""
    return unscaled_angles(d, theta * s ** (d / (d - 2)))


def yarn(d: int, s: float, own: int, theta: float = 10_000.0) -> Angles:
    """Peng et al. 2023, with the ramp over pairs of their code (jquesnelle/yarn)."""

    def pair_turning(times: float) -> float:
        return d * np.log(own / (times * 2 * np.pi)) / (2 * np.log(theta))

    low, high = max(np.floor(pair_turning(32)), 0), min(np.ceil(pair_turning(1)), d - 1)
    slowed = np.clip((np.arange(d // 2) - low) / (high - low), 0, 1)
    return unscaled_angles(d, theta) * (1 - slowed) + unscaled_angles(d, theta) / s * slowed


def expected(rope: str, d: int, length: int = WANTED) -> Angles:
    s = WANTED / OWN
    dynamic = 10_000.0 * max(s * length / OWN - (s - 1), 1.0) ** (d / (d - 2))
    return {
        "ntk": ntk(d, s),
        "linear": unscaled_angles(d) / s,
        "dynamic": unscaled_angles(d, dynamic),
        "yarn": yarn(d, s, OWN),
    }[rope]


def saved(folder: Path, values: dict[str, Any]) -> Path:
    """A random model of this config.json in a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = {name: value for name, value in values.items() if name != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values["model_type"], **kind))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def rotary(folder: Path, rope: str | None, tokens: int = WANTED) -> Any:
    """The rotary embedding of a base, loaded for training as a recipe scales it."""
    base = Base(model=str(folder), context_tokens=tokens, rope=rope)
    values = json.loads((folder / "config.json").read_text())
    assert scaling.problems(values, base, folder) == []
    view = rope_view.scaled(folder, values, base, folder.parent / "scaled")
    return loading.load_base(view, "none", torch.float32).model.rotary_emb


def turned(embedding: Any, positions: list[int]) -> tuple[Angles, Angles]:
    """cos and sin that the rotary embedding gives at these positions, [positions, pairs]."""
    cos, sin = embedding(torch.zeros(1), torch.tensor([positions]))
    pairs = embedding.inv_freq.numel()
    return cos[0, :, :pairs].double().numpy(), sin[0, :, :pairs].double().numpy()


@pytest.mark.parametrize("rope", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_loaded_model_turns_by_the_formula(shape: str, rope: str, tmp_path: Path) -> None:
    """Frequencies to float32's rounding; cos and sin at first, last, and past the old maximum."""
    values, d = SHAPES[shape]
    embedding = rotary(saved(tmp_path / "base", values), rope)
    positions = [0, 1, OWN - 1, OWN, WANTED - 1]
    cos, sin = turned(embedding, positions)
    formula = expected(rope, d)
    np.testing.assert_allclose(embedding.inv_freq.double().numpy(), formula, rtol=FREQUENCY)
    angles = np.outer(positions, formula)
    length = 0.1 * np.log(WANTED / OWN) + 1 if rope == "yarn" else 1.0
    np.testing.assert_allclose(cos, length * np.cos(angles), atol=ANGLE)
    np.testing.assert_allclose(sin, length * np.sin(angles), atol=ANGLE)


@pytest.mark.parametrize(("shape", "head"), [("llama", 128), ("phi", 80)])
def test_the_check_above_would_see_a_wrong_exponent(shape: str, head: int) -> None:
    """d one off, the head size for the rotated width, d/(d-1) or no exponent: all are seen."""
    d, s = SHAPES[shape][1], WANTED / OWN
    right = ntk(d, s)
    wrong = [unscaled_angles(d, 10_000.0 * s ** (n / (n - 2))) for n in (d - 1, d + 1, 2 * d)]
    wrong += [unscaled_angles(d, 10_000.0 * s ** (d / (d - 1))), unscaled_angles(d, 10_000.0 * s)]
    if head != d:
        wrong += [unscaled_angles(d, 10_000.0 * s ** (head / (head - 2)))]
    for angles in wrong:
        assert not np.allclose(angles, right, rtol=FREQUENCY, atol=0)
    assert right[0] == 1.0, "the fastest pair stays"
    assert right[-1] == pytest.approx(unscaled_angles(d)[-1] / s, rel=1e-12), (
        "the slowest is s times slower"
    )


def test_yarn_keeps_the_papers_bounds() -> None:
    """Pairs turning over 32 times within the old context stay, those under once are divided by s."""
    d, own, s = 128, 4096, 2.0
    scaled, before = yarn(d, s, own), unscaled_angles(d)
    turns = own * before / (2 * np.pi)
    assert np.array_equal(scaled[turns > 32], before[turns > 32])
    assert np.allclose(scaled[turns < 1], before[turns < 1] / s, rtol=1e-12)
    assert {32 > t > 1 for t in turns} == {True, False}
    between = (turns < 32) & (turns > 1)
    assert ((scaled < before) & (scaled > before / s))[between].mean() > 0.9


@pytest.mark.parametrize("length", [OWN, OWN + 1, 100, WANTED])
def test_dynamic_follows_the_text_being_written(length: int, tmp_path: Path) -> None:
    """Unscaled up to the old maximum, then by the length; whatever was read before."""
    embedding = rotary(saved(tmp_path / "base", PHI), "dynamic")
    for before in (WANTED, 7, OWN + 3):
        turned(embedding, list(range(before)))
        cos, _ = turned(embedding, list(range(length)))
        formula = expected("dynamic", 32, length)
        np.testing.assert_allclose(embedding.inv_freq.double().numpy(), formula, rtol=FREQUENCY)
        np.testing.assert_allclose(cos[-1], np.cos((length - 1) * formula), atol=ANGLE)


@pytest.mark.parametrize("told", [True, False], ids=["theta told", "defaults"])
@pytest.mark.parametrize("family", scaling.FAMILIES)
def test_every_family_rotates_what_the_formula_says(family: str, told: bool) -> None:
    """transformers' own d and theta of each architecture, also where config.json leaves them out."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def angles(values: dict[str, Any]) -> Angles:
        config = AutoConfig.for_model(**values)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        kind = type(model.model.rotary_emb)
        own_angles: Angles = kind(config).inv_freq.double().numpy()
        return own_angles

    values = LLAMA | {"model_type": family, "num_key_value_heads": 2, "hidden_size": 160}
    if told:
        values |= {"rope_theta": 250_000.0}
    before = angles(values)
    d = 2 * len(before)
    theta = before[-1] ** (-d / (d - 2))
    # Powers of a float32 frequency: a few times its own error.
    assert theta == pytest.approx(250_000.0 if told else 10_000.0, rel=5 * FREQUENCY)
    assert scaling.rotary_width(values) == d
    for method in METHODS:
        now = angles(scaling.scaled(values, WANTED, method))
        expected_config = {
            "ntk": ntk(d, WANTED / OWN, theta),
            "linear": before / (WANTED / OWN),
            "dynamic": before,  # of a text up to the old maximum
            "yarn": yarn(d, WANTED / OWN, OWN, theta),
        }[method]
        np.testing.assert_allclose(now, expected_config, rtol=5 * FREQUENCY, err_msg=method)


@pytest.mark.parametrize("rope", METHODS)
def test_old_and_new_config_forms_give_the_same(rope: str) -> None:
    """transformers 4's keys and transformers 5's are both read; both are written."""
    old = PHI | {"rope_theta": 5000.0, "rope_scaling": None}
    new = {name: value for name, value in PHI.items() if name != "partial_rotary_factor"}
    new |= {"rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 0.4}}
    first, second = (scaling.scaled(values, WANTED, rope) for values in (old, new))
    assert first == second
    parameters = first["rope_parameters"]
    assert first["rope_theta"] == parameters["rope_theta"]
    assert first["rope_scaling"] == (None if rope == "ntk" else parameters)
    assert first["partial_rotary_factor"] == parameters["partial_rotary_factor"] == 0.4
    assert scaling.length(first) == WANTED
    # What transformers and vLLM take for the maximum before the factor, or for the whole.
    raises_maximum = rope in ("ntk", "yarn")
    assert first["max_position_embeddings"] == (WANTED if raises_maximum else OWN)
    assert "rope_parameters" not in old, "the base's own config is untouched"


def problem(values: dict[str, Any], **settings: Any) -> str:
    problems = scaling.problems(values, Base(model="m", **settings), Path("m"))
    return "\n".join(problems)


def test_what_cannot_be_scaled_says_why_and_the_fix() -> None:
    """Too long without a method, nothing to scale, no RoPE, scaled before, several RoPEs, no maximum."""
    assert problem(LLAMA, context_tokens=160) == (
        "base.context_tokens (160) is past the 64 tokens that m reads: set base.rope (ntk, linear, "
        "dynamic or yarn) to scale its positions, or lower base.context_tokens"
    )
    for tokens in (32, 64):
        message = problem(LLAMA, context_tokens=tokens, rope="ntk")
        assert "m reads 64 tokens by itself" in message
        assert "leave base.rope out" in message
        assert problem(LLAMA, context_tokens=tokens) == "", "up to the maximum it only limits"
    assert problem(LLAMA) == ""
    assert problem(LLAMA, context_tokens=65, rope="yarn") == ""
    gpt2 = {"model_type": "gpt2", "n_positions": 64}
    assert "model_type gpt2, which has no RoPE or one that" in problem(
        gpt2, context_tokens=65, rope="ntk"
    )
    assert "names no max_position_embeddings" in problem(gpt2, context_tokens=65, rope="ntk")
    for name, kind in (("rope_scaling", "type"), ("rope_parameters", "rope_type")):
        llama3 = LLAMA | {name: {kind: "llama3", "factor": 8.0}}
        message = problem(llama3, context_tokens=65, rope="ntk")
        assert "the RoPE of m is scaled already (llama3, factor 8.0)" in message
        assert "use the 64 tokens it has" in message
        assert problem(llama3, context_tokens=32) == ""
    layers = LLAMA | {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}
    assert "a RoPE for each kind of layer" in problem(layers, context_tokens=65, rope="ntk")
    narrow = LLAMA | {"head_dim": 2}
    assert "rotates 2 dimensions a head" in problem(narrow, context_tokens=65, rope="ntk")


def test_what_was_scaled_is_not_scaled_again() -> None:
    """A package made with linear, dynamic or yarn is refused as a base to scale; its length is known."""
    for method in ("linear", "dynamic", "yarn"):
        once = scaling.scaled(LLAMA, WANTED, method)
        assert f"scaled already ({method}, factor 2.5)" in problem(
            once, context_tokens=320, rope="ntk"
        )
        assert problem(once, context_tokens=WANTED) == ""
        assert f"past the {WANTED} tokens" in problem(once, context_tokens=WANTED + 1)
