"""Tiny random models of common architectures, each with the quirks that its real ones have.

Float32, so that nothing but a wrong formula tells two ways of computing apart. Biases and norms are
random too: at their initial zeros and ones a lost bias would not be seen. Windows and caps are small,
so that they act on short rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tiny

WINDOW = 8
# Tried by `make test`; all by `make test-all`. Phi has biases and a LayerNorm, Gemma 2 windows and caps.
FIRST = ("llama", "phi", "gemma2")
SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,  # ten times less leaves all logits nearly equal
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
GEMMA = {"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True}
SCALED = {"query_pre_attn_scalar": 24}  # not the head's width
CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}
# Per model type: what differs from SIZES.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": WINDOW, "head_dim": 32},
    "qwen2": {"tie_word_embeddings": True, "use_sliding_window": True} | LAYERS,
    "qwen3": {"tie_word_embeddings": True, "head_dim": 32},
    "phi": {"num_key_value_heads": 4, "intermediate_size": 256},
    "phi3": {"sliding_window": WINDOW, "num_key_value_heads": 4},
    "gemma": GEMMA,
    "gemma2": GEMMA | LAYERS | SCALED | CAPPED,
    "gemma3_text": GEMMA | LAYERS | SCALED,
}
QKV = frozenset({"q_proj", "k_proj", "v_proj"})
GATED = QKV | {"o_proj", "gate_proj", "up_proj", "down_proj"}
# Which modules of a layer are linear: what all-linear must find, neither more nor less.
TARGETS = dict.fromkeys(SHAPES, GATED) | {
    "phi": QKV | {"dense", "fc1", "fc2"},
    "phi3": frozenset({"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
}


def each(model_types: Iterable[str], first: Iterable[str] = FIRST) -> list[Any]:
    """Parameters of a test: all of these types, those that are not in `first` for `make test-all`."""
    import pytest

    return [
        pytest.param(name, marks=() if name in first else pytest.mark.full) for name in model_types
    ]


def make_model(model_type: str, seed: int = 0, **more: Any) -> Any:
    """A random model in memory; `more` overrides its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **SIZES | SHAPES.get(model_type, {}) | more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        model = model.float().eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def make_base(folder: Path, model_type: str, **more: Any) -> Path:
    """The same with a tokenizer, in `folder`."""
    model = make_model(model_type, **more)
    model.save_pretrained(folder)
    tiny.make_tokenizer(folder)
    return folder


LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}


def llama_7b() -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Llama-2-7B's config and the shapes of its tensors, as its files' headers tell them."""
    h, m, v = 4096, 11008, 32000
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (v, h),
        "lm_head.weight": (v, h),
        "model.norm.weight": (h,),
    }
    for n in range(32):
        layer = f"model.layers.{n}."
        found |= {f"{layer}self_attn.{x}_proj.weight": (h, h) for x in "qkvo"}
        found |= {f"{layer}mlp.{x}_proj.weight": (m, h) for x in ("gate", "up")}
        found |= {f"{layer}mlp.down_proj.weight": (h, m)}
        found |= {f"{layer}{x}_layernorm.weight": (h,) for x in ("input", "post_attention")}
    return LLAMA_7B, found
