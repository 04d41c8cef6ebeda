"""TRL's and Unsloth's training at their best, on the rows that precis trains on."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from gpu_shapes import SHAPES
from gpu_turns import Turns, segments, steps

# Unsloth's names of what the others' target_modules "all-linear" comes to.
LINEARS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "phi": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"],
}


def quantization() -> str:
    """Of all base models. Where a script is tried on a CPU nothing is rounded."""
    import torch

    return "nf4" if torch.cuda.is_available() else "none"


def encoded(shape: Path, length: int) -> tuple[Any, Any]:
    """Its tokenizer, and the rows as precis trains on them: what is learned is the completion."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from tasks.contracts.recipe import Recipe
    from tasks.contracts.records import read_rows
    from tasks.models import find_base
    from tasks.models.encoding import encode_for
    from tasks.models.prepared_base import BaseFolder

    tokenizer = AutoTokenizer.from_pretrained(shape)
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "data": {"train": "-"},
            "base": {"model": str(shape)},
            "training": {"max_length": length},
        }
    )
    base = find_base.prepare(recipe, BaseFolder.read(shape))
    examples = encode_for(read_rows(shape.parent / "rows.jsonl"), tokenizer, base)
    columns = {"input_ids": examples.input_ids, "labels": examples.labels}
    return tokenizer, Dataset.from_dict(columns)


def peer_arguments(out: Path, training: dict[str, Any], **more: Any) -> Any:
    """What precis trains with, in full: Unsloth has defaults of its own (accumulation 2, decay)."""
    import torch
    from trl import SFTConfig

    cuda = torch.cuda.is_available()
    common = {
        "gradient_accumulation_steps": 1,
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.03,
        "max_grad_norm": 1.0,
    }
    return SFTConfig(
        output_dir=str(out),
        **(common | training | more),
        seed=0,
        data_seed=0,
        bf16=cuda,
        use_cpu=not cuda,
        packing=True,
        packing_strategy="bfd",
        gradient_checkpointing=False,
        save_strategy="no",
        logging_first_step=True,
        report_to=[],
        disable_tqdm=True,
    )


def varlen() -> str:
    """An attention over packed rows for plain TRL: torch's own kernel; row by row on a CPU."""
    import torch
    from torch.nn.attention.varlen import varlen_attn
    from transformers import AttentionInterface, AttentionMaskInterface

    from tasks.train import attention

    def by_kernel(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **kw: Any
    ) -> Any:
        _, _, tokens, width = query.shape
        # Phi's queries and keys come in float32, for which there is no kernel.
        flat = [
            x.to(torch.bfloat16).transpose(1, 2).reshape(tokens, -1, width)
            for x in (query, key, value)
        ]
        bounds, longest = kw["cu_seq_lens_q"], int(kw["max_length_q"])
        made = varlen_attn(
            *flat, bounds, bounds, longest, longest, window_size=(-1, 0), scale=scaling
        )
        return made.view(1, tokens, -1, width), None

    if not torch.cuda.is_available():
        return attention.register()
    AttentionInterface.register("varlen", by_kernel)
    AttentionMaskInterface.register("varlen", lambda *_, **__: None)
    return "varlen"


def trl_trainer(shape: Path, training: dict[str, Any], attention: str, out: Path) -> Any:
    """TRL's trainer: packed, nothing computed again; the same rows."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTTrainer

    from tasks.models import loading
    from tasks.models.quantization import config as quantization_config

    tokenizer, dataset = encoded(shape, training["max_length"])
    dtype = loading.compute_dtype()
    model = AutoModelForCausalLM.from_pretrained(
        shape,
        quantization_config=quantization_config(quantization(), dtype),
        dtype=dtype,
        device_map={"": loading.device()},
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return SFTTrainer(
        model=model,
        args=peer_arguments(out / "trl", training),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=16,
            lora_alpha=32,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def trl(
    shape: Path, training: dict[str, Any], more: dict[str, Any], turns: Turns, out: Path
) -> dict[str, Any]:
    """TRL at its best: variable-length attention."""
    return peer(trl_trainer(shape, steps() | training, varlen(), out), turns)


def unsloth(
    shape: Path, training: dict[str, Any], more: dict[str, Any], turns: Turns, out: Path
) -> dict[str, Any]:
    """Unsloth at its best: packed, nothing computed again; the same rows. Imported before trl."""

    for name in more.get("without", []):
        sys.modules[name] = None  # type: ignore[assignment]
    fast_model = importlib.import_module("unsloth").FastLanguageModel
    import torch
    from trl import SFTTrainer

    kinds = {"load_in_4bit": True, "dtype": torch.bfloat16, "use_gradient_checkpointing": False}
    model, tokenizer = fast_model.from_pretrained(
        str(shape), max_seq_length=training["max_length"], local_files_only=True, **kinds
    )
    model = fast_model.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=0,
        bias="none",
        target_modules=LINEARS[SHAPES[shape.name]["model_type"]],
        use_gradient_checkpointing=False,
        random_state=0,
    )
    _, dataset = encoded(shape, training["max_length"])
    # dataset_num_proc: its default starts many processes to pack.
    args = peer_arguments(out / "unsloth", steps() | training, dataset_num_proc=1)
    found = peer(
        SFTTrainer(model=model, processing_class=tokenizer, train_dataset=dataset, args=args),
        turns,
    )
    chosen = importlib.import_module("unsloth.utils.attention_dispatch").select_attention_backend
    packed = importlib.import_module("unsloth.utils.hf_packed_attention").HF_PACKED_ATTENTION_STATS
    found["notes"] = [f"packed rows attend by {chosen(use_varlen=True)}; generic path {packed}"]
    return found


def peer(trainer: Any, turns: Turns) -> dict[str, Any]:
    """Count tokens as they are handed over, and train."""
    compute = trainer.compute_loss
    seen: list[Any] = [0]  # on the GPU until it is asked for: reading it would wait for all before

    def counted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen[0] = seen[0] + inputs["input_ids"].ne(0).sum()
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = counted
    found: dict[str, Any] = {}
    trainer.add_callback(segments(turns, lambda: int(seen[0]), found))
    trainer.train()
    return found
