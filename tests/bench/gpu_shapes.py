"""Models, rows and variants that the GPU benchmarks train: random weights of known shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "llama2-7b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    "llama2-13b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    "phi-2": {
        "model_type": "phi",
        "vocab_size": 51200,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.4,
        "resid_pdrop": 0.0,  # 0.1 in phi-2: its noise would hide whether first losses agree
    },
}
PACKED = {"per_device_train_batch_size": 4, "max_length": 2048}
SMALL = {"per_device_train_batch_size": 1, "max_length": 2112, "optim": "adamw_bnb_8bit"}
BILL = {"per_device_train_batch_size": 1, "max_length": 4096}
CARD = {"fp16": True, "gib": 15}  # of 16 GB, without bf16 and flash kernels
# name of a variant: who, shape, training settings, others
VARIANTS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "auto": ("precis", "llama2-7b", PACKED, {}),
    "resident": ("precis", "llama2-7b", PACKED | {"memory": "resident"}, {}),
    "nf4": ("precis", "llama2-7b", PACKED | {"memory": "none"}, {}),
    "selective": ("precis", "llama2-7b", PACKED | {"memory": "selective"}, {}),
    "full": ("precis", "llama2-7b", PACKED | {"memory": "full"}, {}),
    "plain": ("precis", "llama2-7b", PACKED | {"memory": "plain"}, {}),
    "trl": ("trl", "llama2-7b", PACKED, {}),
    "unsloth": ("unsloth", "llama2-7b", PACKED, {}),
    "unsloth-torch": ("unsloth", "llama2-7b", PACKED, {"without": ["xformers"]}),
    "small-least": ("precis", "llama2-7b", SMALL | {"memory": "least"}, {}),
    "small-full": ("precis", "llama2-7b", SMALL | {"memory": "full"}, {}),
    "bill-full": ("precis", "llama2-7b", BILL | {"memory": "full"}, CARD | {"long": True}),
    "bill-auto": ("precis", "llama2-7b", BILL, CARD | {"long": True}),
    "phi-auto": ("precis", "phi-2", PACKED, {}),
    "phi-nf4": ("precis", "phi-2", PACKED | {"memory": "none"}, {}),
    "phi-trl": ("trl", "phi-2", PACKED, {}),
    "phi-unsloth": ("unsloth", "phi-2", PACKED, {}),
}
GROUPS = {
    "speed": ["auto", "nf4", "trl"],
    "peers": ["auto", "trl", "unsloth"],  # 128 GiB
    "memory": ["selective", "full"],
    "small": ["small-least", "small-full", "bill-full", "bill-auto"],
    "phi": ["phi-auto", "phi-nf4", "phi-trl"],
    "phi-peers": ["phi-auto", "phi-trl", "phi-unsloth"],
    "together": ["auto", "trl", "bill-full", "phi-auto", "small-least"],  # 127 GiB
}


def make_model(name: str, folder: Path, tokenizer: Path) -> None:
    """Random weights of that shape, in bf16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    values = dict(SHAPES[name])
    kind = values.pop("model_type")
    config = AutoConfig.for_model(kind, **values, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config.dtype = "bfloat16"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, max_shard_size="5GB")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def make_rows(source: Path, folder: Path) -> None:
    """Canonical rows: DialogSum's first 4,000; and `bills`: dialogues joined to fill 4,096 tokens."""
    from tasks.contracts.records import Row, to_json

    found = [json.loads(line) for line in source.read_text().splitlines()[:4000]]
    rows = [Row(r["fname"], r["fname"], r["dialogue"], (r["summary"],)) for r in found]
    joined = [
        Row(
            f"bill-{i}",
            f"bill-{i}",
            "\n".join(r["dialogue"] for r in found[i : i + 40]),
            (" ".join(r["summary"] for r in found[i : i + 6]),),
        )
        for i in range(0, 1600, 40)
    ]
    for name, chosen in (("rows", rows), ("bills", joined)):
        (folder / f"{name}.jsonl").write_text("".join(to_json(row) + "\n" for row in chosen))
