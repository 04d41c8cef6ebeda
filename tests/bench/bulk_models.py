"""Random-weight models of Llama's shape, and adapters for them: sizes to move, not to talk to.

    python tests/bench/bulk_models.py FOLDER [small | 1b | 7b]

Speed and memory of a merge, or of a registration, ask nothing of what the weights say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import tiny  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tasks.contracts.recipe import Recipe  # noqa: E402

# hidden, intermediate, layers, heads, key-value heads; a vocabulary of 32,000
SHAPES = {
    "small": (1024, 2816, 16, 16, 16),  # 0.3 B parameters, 0.54 GB
    "1b": (2048, 5632, 22, 32, 4),  # TinyLlama's: 1.1 B, 2.2 GB
    "7b": (4096, 11008, 32, 32, 32),  # Llama-2-7B's: 6.7 B, 13.5 GB
}
TARGETS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
R, ALPHA = 16, 32
SHARD_BYTES = {"small": 300_000_000, "1b": 1_200_000_000, "7b": 5_000_000_000}


def make_base(folder: Path, size: str) -> Path:
    """A base in bf16 in shards of SHARD_BYTES at most, a tokenizer beside it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads, kv_heads = SHAPES[size]
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    folder.mkdir(parents=True)
    tiny.make_tokenizer(folder)
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in LlamaForCausalLM(config).state_dict().items()}
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    _write(folder, shapes, SHARD_BYTES[size])
    return folder


def _write(folder: Path, shapes: dict[str, tuple[int, ...]], most: int) -> None:
    parts: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if sum(map(_bytes, parts[-1].values())) + _bytes(shape) > most:
            parts.append({})
        parts[-1][name] = shape
    index: dict[str, str] = {}
    torch.manual_seed(0)
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file({n: _random(n, s) for n, s in part.items()}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    total = sum(map(_bytes, shapes.values()))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    )


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * torch.Size(shape).numel()


def _random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02).cpu()


def make_adapter(folder: Path, base: Path, size: str, dtype: str) -> Path:
    """LoRA on all linear layers in PEFT's format, trained in `dtype` for all it says."""
    hidden, inner, layers, heads, kv_heads = SHAPES[size]
    narrow = hidden // heads * kv_heads
    sizes = dict.fromkeys(("q_proj", "o_proj"), (hidden, hidden))
    sizes |= dict.fromkeys(("k_proj", "v_proj"), (narrow, hidden))
    sizes |= dict.fromkeys(("gate_proj", "up_proj"), (inner, hidden)) | {
        "down_proj": (hidden, inner)
    }
    torch.manual_seed(1)
    tensors = {}
    for layer in range(layers):
        for name, (rows, columns) in sizes.items():
            part = "self_attn" if name[0] in "qkvo" else "mlp"
            prefix = f"base_model.model.model.layers.{layer}.{part}.{name}.lora_"
            tensors[f"{prefix}A.weight"] = torch.randn(R, columns) * 0.01
            tensors[f"{prefix}B.weight"] = torch.randn(rows, R) * 0.01
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"compute_dtype": dtype})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": R, "lora_alpha": ALPHA}
    config |= {"target_modules": TARGETS, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def recipe(base: Path, **parts: Any) -> Recipe:
    """The defaults (NF4, merged onto the rounded base) over such a base."""
    return tiny.make_recipe(base, **parts)


if __name__ == "__main__":
    chosen = sys.argv[2] if len(sys.argv) > 2 else "1b"
    made = make_base(Path(sys.argv[1]) / "base", chosen)
    make_adapter(Path(sys.argv[1]) / "adapter", made, chosen, "float32")
