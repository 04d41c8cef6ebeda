"""Make the demo's base model: `python deployments/demo/pretrain.py [--out FOLDER] [--steps N]`.

A small Llama and its tokenizer, from scratch, on conversations and what people wrote of them
(`dialogues/prose.py`). It never sees a request to summarize, nor a summary, nor a combination of
facts of the evaluation set. Other processes write the text while it trains, so that no passage is
seen twice. Minutes on a GPU with 16 CPU cores beside it; days without.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dialogues.base import Dice
from dialogues.prose import passage
from make_dialogues import scenes

SEED = 0
VOCABULARY, CONTEXT, SHARD = 2048, 1024, 4096  # tokens, tokens, passages
# Every size is a multiple of 32: bitsandbytes' CPU kernel asks for it.
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
WARMUP, PEAK, WEIGHT_DECAY = 200, 2e-3, 0.1
PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def passages(shard: int, count: int = SHARD) -> list[str]:
    """One shard of text; each shard is a stream of its own."""
    stream = f"pretrain-{SEED}-{shard}"
    found = list(islice(scenes(stream, "train"), count))
    dice = Dice(f"{stream}-prose")
    return [passage(dice, scene, dice.pick(found)) for scene in found]


def train_tokenizer(folder: Path) -> None:
    """Byte-level BPE on two shards; the tokenizer adds the start token by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(passages(-1) + passages(-2), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 1)]
    )
    names = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        **names,
    ).save_pretrained(folder)


def shard_of_rows(job: tuple[str, int]) -> Any:
    """Rows of CONTEXT tokens, each holding whole passages and padding (a uint16 array)."""
    import numpy as np
    from tokenizers import Tokenizer

    path, shard = job
    tokenizer = Tokenizer.from_file(path)
    rows: list[list[int]] = []
    row: list[int] = []
    for text in passages(shard):
        ids = [*tokenizer.encode(text).ids, 2]
        if len(row) + len(ids) > CONTEXT:
            rows.append(row + [0] * (CONTEXT - len(row)))
            row = []
        row = row + ids[:CONTEXT]
    return np.array(rows, dtype=np.uint16)


def batches(tokenizer: Path, size: int) -> Iterator[Any]:
    """Endless batches of rows, made by other processes, always in the same order."""
    import numpy as np

    workers = max(1, (os.cpu_count() or 2) - 2)
    jobs = ((str(tokenizer), shard) for shard in range(10**9))
    with get_context("spawn").Pool(workers) as pool:
        waiting = [pool.apply_async(shard_of_rows, (next(jobs),)) for _ in range(workers * 4)]
        rows = np.zeros((0, CONTEXT), dtype=np.uint16)
        while True:
            while len(rows) < size:
                rows = np.concatenate([rows, waiting.pop(0).get()])
                waiting.append(pool.apply_async(shard_of_rows, (next(jobs),)))
            yield rows[:size]
            rows = rows[size:]


def new_model() -> Any:
    """The untrained model, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
        **SHAPE,
    )
    return LlamaForCausalLM(config)


def optimizer_for(model: Any) -> Any:
    """AdamW; only matrices decay."""
    import torch

    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95), fused=torch.cuda.is_available())


def rate(step: int, steps: int) -> float:
    """The learning rate: a linear warm-up, then a cosine down to zero."""
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    return PEAK * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def train(model: Any, rows: Iterator[Any], steps: int, device: str) -> None:
    """Train in place; prints loss and speed."""
    import torch

    optimizer = optimizer_for(model)
    forward = torch.compile(model) if device == "cuda" else model
    start = time.monotonic()
    for step, batch in enumerate(islice(rows, steps)):
        ids = torch.from_numpy(batch.astype("int64")).to(device, non_blocking=True)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(
                input_ids=ids, labels=ids.masked_fill(ids == 0, -100), use_cache=False
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps - 1:
            seconds = time.monotonic() - start
            print(f"step {step} loss {loss.item():.4f} {seconds:.0f} s", flush=True)


def main() -> None:
    """Write the base model's folder."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--rows", type=int, default=64, help="sequences a step")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    train_tokenizer(args.out)
    model = new_model().to(device)
    print(f"{model.num_parameters():,} parameters on {device}", flush=True)
    train(model, batches(args.out / "tokenizer.json", args.rows), args.steps, device)
    model.to(torch.bfloat16).save_pretrained(args.out)


if __name__ == "__main__":
    main()
