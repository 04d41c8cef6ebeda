"""Load a base model as it is trained: for training itself, and for the merge's drift check.

The weights of linear layers may be stored in fewer bits (tasks.models.quantization), and are
computed with in a wider type.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any

from tasks.models import compatibility, weight_bytes
from tasks.models.safetensors_headers import tensor_shapes
from tasks.serving import summarizer


def one_gpu(index: int = 0) -> None:
    """Let this process see one GPU only: of those that it may see, the one at `index`.

    transformers would use all GPUs in one process, and make a context on each of them when it
    stores the state of their random numbers. To be called before torch looks for GPUs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", str(index)).split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[min(index, len(visible) - 1)]


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


def loaded_bytes(base: Path, quantization: str) -> int:
    """About how many bytes a loaded model takes: 2 a weight, linear layers as quantized."""
    shapes = tensor_shapes(base)
    inner = compatibility.Layers.of(shapes).inner.values()
    others = sum(map(prod, shapes.values())) - sum(map(prod, inner))
    return int(
        2 * others + sum(weight_bytes.loaded_bytes(shape, quantization, "cuda") for shape in inner)
    )


def load_base(base: Path, quantization: str, dtype: Any, attention: str | None = None) -> Any:
    """The base model in a local folder, quantized as `base.quantization` says, computing in `dtype`.

    `attention`: an `attn_implementation` of transformers; None: the one that the model is served with.
    When this process sees several GPUs and the first one does not hold the model, it is spread over
    all. Raises ValueError when all together do not hold it.
    """
    from transformers import AutoModelForCausalLM

    from tasks.models.quantization import config, replace_inexact_layers

    several = summarizer.needs_several_gpus(loaded_bytes(base, quantization))
    model = AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=config(quantization, dtype),
        dtype=dtype,
        device_map="auto" if several else {"": device()},
        max_memory=summarizer.room_for_weights() if several else None,
        attn_implementation=attention or summarizer.served_attention(base),
        local_files_only=True,
        trust_remote_code=False,
    )
    if several:
        summarizer.refuse_offloaded(model)
    replace_inexact_layers(model, dtype)
    summarizer.reset_dynamic_rope(model)
    return model
