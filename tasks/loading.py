"""Load a base model as it is trained: for training itself, and for the merge's drift check.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314): the weights of linear layers rest as 4-bit
NormalFloat, their scales quantized once more, and are computed with in a wider type.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def one_gpu() -> None:
    """Show this process its first GPU alone; transformers would spread over all in one process.

    To be called before torch looks for GPUs.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


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

    model = AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=quantization_config(quantization, dtype),
        dtype=dtype,
        device_map={"": device()},
        attn_implementation=attention,
        local_files_only=True,
    )
    if model.device.type == "cpu":
        _mend_uneven_layers(model)
    return model


def nf4_rounded(weight: Any, dtype: Any) -> Any:
    """`weight` quantized from `dtype` to NF4 and back to `dtype`: what a quantized layer computes with.

    Flattened, since bitsandbytes' blocks run on from row to row (see below).
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    flat = weight.to(device(), dtype).reshape(1, -1)
    packed, state = quantize_4bit(flat, quant_type="nf4", compress_statistics=True)
    return dequantize_4bit(packed, state).reshape(weight.shape)


def dequantize_once(model: Any) -> None:
    """Replace quantized linear layers by plain ones with the rounded weights they compute with.

    The same function, without dequantizing in every pass: 2 bytes a weight instead of about half.
    """
    for name, layer in list(model.named_modules()):
        if type(layer).__name__ == "Linear4bit":
            _make_plain(model, name, layer, flat=False)


def _mend_uneven_layers(model: Any) -> None:
    """Layers whose rows are no whole number of blocks (64) keep their rounded weights in full.

    bitsandbytes 0.50.2's CPU kernel takes each of their rows to begin a block and so gives most
    weights another block's scale: dialog-7m's down_proj (rows of 688) came back with 2.7 times
    the rounding error, and with other weights than a GPU computes with.
    """
    for name, layer in list(model.named_modules()):
        if type(layer).__name__ != "Linear4bit" or layer.in_features % layer.weight.blocksize == 0:
            continue
        _make_plain(model, name, layer, flat=True)


def _make_plain(model: Any, name: str, layer: Any, flat: bool) -> None:
    """Put a torch Linear with a Linear4bit's rounded weights in its place; `flat`: see above."""
    import copy

    import torch
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(layer.weight.quant_state)
    shape = state.shape
    if flat:
        state.shape = torch.Size([1, shape.numel()])
    plain = torch.nn.Linear(*reversed(shape), bias=layer.bias is not None, device="meta")
    plain.weight = torch.nn.Parameter(
        dequantize_4bit(layer.weight, state).reshape(shape), requires_grad=False
    )
    plain.bias = layer.bias
    model.set_submodule(name, plain.requires_grad_(False))
