"""Which models continuous decoding supports."""

from __future__ import annotations

from importlib import util
from typing import Any

import torch

from .settings import CONTINUOUS_MODEL_TYPES

ROPE_TYPES = {"default", "linear", "yarn", "llama3"}  # angles depend on a token's position alone


def why_unsupported(model: Any, config: Any) -> str | None:
    """Why this model's summaries cannot be decoded continuously, or None if they can.

    `config`: the complete GenerationConfig that `generate` would use.
    """
    text_config, device = model.config.get_text_config(), model.device.type
    ropes = {getattr(module, "rope_type", "default") for module in model.modules()}
    layers = getattr(text_config, "layer_types", None)
    window = getattr(text_config, "sliding_window", None) is not None
    slides = window if layers is None else set(layers) != {"full_attention"}
    processors = [type(processor).__name__ for processor in model._get_logits_processor(config, 1)]
    model_type, length_ropes = text_config.model_type, ", ".join(ropes - ROPE_TYPES)
    reasons = [
        (model_type not in CONTINUOUS_MODEL_TYPES, f"it was not tried with {model_type} models"),
        (slides, "the model's attention slides over a window"),
        (
            getattr(text_config, "attn_logit_softcapping", None),
            "the model caps its attention scores",
        ),
        (length_ropes, f"angles depend on the text's length ({length_ropes} RoPE)"),
        ("offloaded" in str(config.cache_implementation), "keys and values are offloaded"),
        (
            processors,
            f"the base's generation_config changes scores ({', '.join(processors)})",
        ),
        (getattr(model, "hf_device_map", None), "the model is spread over several GPUs"),
        (device not in {"cpu", "cuda"}, f"it was not tried on {device}"),
        (device == "cuda" and not util.find_spec("triton"), "Triton is not installed"),
        (device == "cuda" and _lacks_bf16(model.device), "it was not tried on GPUs without bf16"),
    ]
    return next((reason for holds, reason in reasons if holds), None)


def _lacks_bf16(device: Any) -> bool:
    major, _ = torch.cuda.get_device_capability(device)
    return int(major) < 8
