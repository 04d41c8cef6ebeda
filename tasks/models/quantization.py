"""Base weights stored in 4 or 8 bits: how they are rounded, and what their layers compute with.

nf4, fp4: blocks of 64 weights share a scale, and scales are quantized once more (QLoRA, Dettmers et
al. 2023, arXiv:2305.14314). int8: each row of a weight has one scale (Dettmers et al. 2022,
arXiv:2208.07339). Imports torch: for child processes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

FOUR_BITS = ("nf4", "fp4")


def config(quantization: str, dtype: torch.dtype) -> Any:
    """transformers' BitsAndBytesConfig for nf4, fp4 or int8, computing in `dtype`; None for none."""
    from transformers import BitsAndBytesConfig

    if quantization == "none":
        return None
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def rounded(weight: torch.Tensor, quantization: str, dtype: torch.dtype) -> torch.Tensor:
    """A matrix [rows, columns] quantized from `dtype` and back to `dtype`, on the device it is on.

    What a layer that was loaded in `quantization` computes with.
    """
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_quant, quantize_4bit

    if quantization == "int8":
        # bitsandbytes' layers go through fp16 on their way to int8
        codes, scales, _ = int8_vectorwise_quant(weight.to(dtype).half())
        return _int8_rounded(codes, scales, dtype)
    # Flattened, since blocks continue from row to row (see _dequantized).
    flat = weight.to(dtype).reshape(1, -1)
    packed, state = quantize_4bit(flat, quant_type=quantization, compress_statistics=True)
    return dequantize_4bit(packed, state).reshape(weight.shape)


def replace_inexact_layers(model: Any, dtype: torch.dtype) -> None:
    """Replace layers that do not compute with exactly the rounded weights by layers that do.

    int8 on every device (see Int8Linear); 4 bits on a CPU when a row is no whole number of blocks.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    cpu = model.device.type == "cpu"
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear8bitLt):
            model.set_submodule(name, Int8Linear(layer, dtype))
        elif cpu and isinstance(layer, Linear4bit) and layer.in_features % layer.weight.blocksize:
            model.set_submodule(name, _dequantized(layer))


def dequantize_once(model: Any) -> None:
    """Replace 4-bit layers by Linear ones with the rounded weights that they compute with.

    The same function without dequantizing in every pass: 2 bytes a weight instead of about half a byte.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            weight = dequantize_4bit(layer.weight, layer.weight.quant_state)
            model.set_submodule(name, _linear(layer, weight))


class Int8Linear(torch.nn.Linear):  # type: ignore[misc]
    """A frozen linear layer with weights in int8 and a scale for each row, made from bitsandbytes' layer.

    Not bitsandbytes' own: LLM.int8's matrix product rounds inputs to int8 as well. The merged model that
    is judged and served does not, so training does not either; a CPU has no such product. And PEFT's
    DoRA breaks bitsandbytes' layer on a CPU: reading the weight loses its scales.
    """

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        torch.nn.Module.__init__(self)  # not Linear's: the weight is a property
        self.out_features, self.in_features = layer.weight.shape
        self.dtype = dtype
        self.register_buffer("codes", layer.weight.data)
        self.register_buffer("scales", layer.weight.SCB)
        self.register_parameter("bias", layer.bias)

    @property
    def weight(self) -> torch.Tensor:
        """The rounded weights [out_features, in_features], in `dtype`."""
        return _int8_rounded(self.codes, self.scales, self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As torch's Linear: computed in `dtype`, returned in the input's type."""
        y = _FrozenProduct.apply(x.to(self.dtype), self.codes, self.scales)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.to(x.dtype)


class _FrozenProduct(torch.autograd.Function):  # type: ignore[misc]
    """x W^T; W is dequantized in each direction, so that no full W is kept between the two."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> Any:
        ctx.save_for_backward(codes, scales)
        return torch.nn.functional.linear(x, _int8_rounded(codes, scales, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        codes, scales = ctx.saved_tensors
        return gradient @ _int8_rounded(codes, scales, gradient.dtype), None, None


def _int8_rounded(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return codes.to(dtype).mul_(scales[:, None] / 127)


def _dequantized(layer: Any) -> torch.nn.Linear:
    """A 4-bit layer as a Linear one with its rounded weights.

    bitsandbytes 0.50.2's CPU kernel assumes that each row starts a block, and so gives most weights of
    uneven rows the scale of another block: dialog-7m's down_proj (rows of 688) had 2.7 times the rounding
    error, and other weights than on a GPU.
    """
    from bitsandbytes.functional import dequantize_4bit

    shape = layer.weight.quant_state.shape
    flat = copy.copy(layer.weight.quant_state)
    flat.shape = torch.Size([1, shape.numel()])
    return _linear(layer, dequantize_4bit(layer.weight, flat).reshape(shape))


def _linear(layer: Any, weight: torch.Tensor) -> torch.nn.Linear:
    """A frozen torch Linear with this weight [out_features, in_features] and the layer's bias."""
    linear = torch.nn.Linear(*reversed(weight.shape), bias=layer.bias is not None, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    linear.bias = layer.bias
    return linear.requires_grad_(False)
