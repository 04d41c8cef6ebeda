"""How a model is loaded so that it computes its own function, on one GPU, several, or a CPU."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from .settings import WEIGHTS_SHARE


def load_model(package: Path, device: str, spread: bool) -> Any:
    """The package's model, ready to generate, on `device`; `spread`: over all GPUs.

    Raises ValueError when it was to be spread and the GPUs together do not hold it.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        package,
        dtype=_dtype(device),
        attn_implementation=served_attention(package),
        device_map="auto" if spread else None,
        max_memory=room_for_weights() if spread else None,
        generation_config=greedy_generation_config(package),
        trust_remote_code=False,
    )
    if spread:
        refuse_offloaded(model)
    model = (model if spread else model.to(device)).eval()
    reset_dynamic_rope(model)
    return model


def _dtype(device: str) -> Any:
    import torch

    if device == "cpu":
        # In float32 a document's summary does not depend on its batch; in bf16 it does.
        return torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


def greedy_generation_config(package: Path) -> Any:
    """What generation_config.json says, but for sampling, which is never done, and stop strings.

    A package's file has a temperature of 0 for vLLM, of which transformers warns at each load. Stop strings
    are those of the settings: the base's would need a tokenizer in each call. None: there is no file.
    """
    import json

    from transformers import GenerationConfig

    file = package / "generation_config.json"
    if not file.is_file():
        return None
    values = json.loads(file.read_text(encoding="utf-8"))
    left_out = ("temperature", "top_k", "top_p", "min_p", "do_sample", "stop_strings")
    return GenerationConfig.from_dict({k: v for k, v in values.items() if k not in left_out})


def served_attention(package: Path) -> str | None:
    """The `attn_implementation` that computes this model's own function; None: transformers' choice.

    That is sdpa, which silently leaves out the cap that Gemma 2 puts on attention scores.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(package, trust_remote_code=False).get_text_config()
    return "eager" if getattr(config, "attn_logit_softcapping", None) else None


def needs_several_gpus(need_bytes: int) -> bool:
    """Whether a model of `need_bytes` is too large for the first GPU, and there are others.

    The GPU's whole memory counts, whatever other processes use of it at the moment. The model's
    layers are then spread over all GPUs, one after the other (accelerate's device_map auto).
    """
    import torch

    if torch.cuda.device_count() < 2:  # 0 without any
        return False
    _, total = torch.cuda.mem_get_info(0)
    share = float(torch.cuda.get_per_process_memory_fraction(0))
    return need_bytes > WEIGHTS_SHARE * share * int(total)


def room_for_weights() -> dict[int | str, int]:
    """Bytes that a model's weights may take of each GPU, as accelerate's `max_memory`.

    By itself accelerate fills the last GPU with all that the driver calls free, memory that this process
    may not use too, and leaves nothing for keys and values.
    """
    import torch
    from accelerate.utils import get_max_memory

    room: dict[int | str, int] = dict(
        get_max_memory()
    )  # host memory, where what does not fit is seen
    for gpu in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(gpu)
        reserved, used = torch.cuda.memory_reserved(gpu), torch.cuda.memory_allocated(gpu)
        allowed = float(torch.cuda.get_per_process_memory_fraction(gpu)) * int(total) - used
        room[gpu] = int(WEIGHTS_SHARE * max(0, min(int(free) + reserved - used, allowed)))
    return room


def parameter_count(package: Path) -> int:
    """How many numbers a package's weights are, from the safetensors headers; imports no torch."""
    from safetensors import safe_open

    count = 0
    for path in package.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        count += sum(map(prod, shapes))
    return count


def refuse_offloaded(model: Any) -> None:
    """Raise ValueError where a model that was to be spread did not fit on the GPUs."""
    if {"cpu", "disk"} & set(map(str, getattr(model, "hf_device_map", {}).values())):
        raise ValueError(
            "the memory of all GPUs together does not hold the model; free some, or use more of them"
        )


def reset_dynamic_rope(model: Any) -> None:
    """Under dynamic RoPE, let angles depend on the current text alone, not on the longest one so far.

    transformers keeps the angles of the longest text a process has seen until one comes that needs no
    scaling: what a model writes, or learns, would depend on what it read before.
    """

    def reset(rotary: Any, *_: Any) -> None:
        rotary.inv_freq = rotary.original_inv_freq
        rotary.max_seq_len_cached = rotary.original_max_seq_len

    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.register_forward_pre_hook(reset)
