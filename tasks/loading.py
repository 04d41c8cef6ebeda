"""Load a base model as it is trained: for training itself, and for the merge's drift check.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314): the weights of linear layers rest as 4-bit
NormalFloat, their scales quantized once more, and are computed with in a wider type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def device() -> str:
    """Where one process computes: the first visible GPU, or the CPU."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def compute_dtype() -> Any:
    """The type (torch.dtype) that training computes in on this machine.

    On a CPU bf16 gains nothing (dialog-7m on Zen 4: 0.57 s a step against 0.59 s in float32), and
    evaluation computes in float32 there too. Emulated bf16, as on a T4, is slower than fp16.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


def quantization_config(quantization: str, dtype: Any) -> Any:
    """transformers' BitsAndBytesConfig for `nf4`; None for `none`."""
    from transformers import BitsAndBytesConfig

    if quantization == "none":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def load_base(base: Path, quantization: str, dtype: Any, attention: str = "sdpa") -> Any:
    """The base model in a local folder, quantized as `base.quantization` says, computing in `dtype`."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=quantization_config(quantization, dtype),
        dtype=dtype,
        device_map={"": device()},
        attn_implementation=attention,
        local_files_only=True,
    )
