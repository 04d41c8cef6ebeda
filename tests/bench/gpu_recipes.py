"""The five recipes a few steps at their true size on one GPU: memory, speed, resume, merge.

    python tests/bench/gpu_recipes.py --rows ROWS DATA BASE     anywhere: DATA's files as canonical rows
    python tests/bench/gpu_recipes.py OUT ROWS TOKENIZER [RECIPE ...]

Weights are random, of Llama-2-7B's and Phi-2's shape: speed and memory need no trained ones; BASE is a
small model whose TOKENIZER goes with them. The Llama recipes run as a 16 GB card without bf16 would
run them: fp16, memory capped at 15 GiB, flash and variable-length kernels switched off. Prints a table.

Over 250 lines: one script, to be carried to a GPU machine as it is.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CAP_GIB = 15.0
STEPS = 6
HEADS = ("recipe", "tokens a row", "training peak GiB", "tokens/s", "loss", "largest B")
HEADS += ("merge s", "KL", "its peak GiB", "a batch of summaries: prompt tokens", "s", "peak GiB")
DATA = {
    "llama2-billsum": ("billsum/us_train_100.jsonl", {"document": "text", "summary": "summary"}),
    "llama2-custom": ("dialogsum/dev.jsonl", {"document": "dialogue", "summary": "summary"}),
    "llama2-chat-guanaco": ("guanaco/train.jsonl", {"text": "text"}),
    "llama2-medical-qa": (
        "medquad/medquad_3k.jsonl",
        {"document": "question", "summary": "answer"},
    ),
    "phi2-dialogsum": ("dialogsum/dev.jsonl", {"document": "dialogue", "summary": "summary"}),
}


def main(out: Path, rows: Path, tokenizer: Path, *names: str) -> None:
    """Run each recipe in a process of its own and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    for name in names or DATA:
        base = out / name.partition("2")[0]
        if not base.is_dir():
            make_base(base, tokenizer, phi=name.startswith("phi"))
        words = [name, str(base), str(rows / f"{name}.jsonl"), str(out / name)]
        (out / name).mkdir(exist_ok=True)
        for part in ("train", "merge"):
            if not ran(part, words):
                break
        shutil.rmtree(out / name / "package", ignore_errors=True)
        found = out / name / "line.txt"
        lines.append(found.read_text() if found.exists() else f"{name}: FAILED")
    print("\n".join(lines))


def ran(part: str, words: list[str]) -> bool:
    """One part of a recipe in a process of its own, as in the flow; what went wrong is printed."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, f"--{part}", *words], capture_output=True, text=True, check=False
    )
    print(words[0], part, f"{time.monotonic() - started:.0f} s", done.stdout[-1500:], flush=True)
    if done.returncode:
        print(done.stderr[-2500:], flush=True)
    return done.returncode == 0


def make_base(folder: Path, tokenizer: Path, *, phi: bool) -> None:
    """Random weights of the true shape, written by the GPU that makes them."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

    if phi:
        kind: Any = PhiForCausalLM
        config: Any = PhiConfig(
            vocab_size=51200,
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
            partial_rotary_factor=0.4,
            bos_token_id=1,
            eos_token_id=2,
            dtype="float16",
        )
    else:
        kind = LlamaForCausalLM
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            dtype="float16",
        )
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        model = kind(config)
    model.save_pretrained(folder, max_shard_size="5GB")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    torch.set_default_dtype(torch.float32)


def train_one(name: str, base: str, rows: str, out: str) -> None:
    """Train, be cancelled at a checkpoint, go on from it."""
    import torch

    from tasks.contracts.errors import TrainingError
    from tasks.models import find_base
    from tasks.train.qlora import train

    recipe, job = chosen(name, Path(base)), Path(out) / "job"
    if name.startswith("llama2"):
        as_a_small_card(torch)
    base_json, values = find_base.find_base(recipe).as_json(), recipe.model_dump(mode="json")
    cancel_after_a_checkpoint(job)
    try:
        train(rows, base_json, values, str(job))
    except TrainingError as error:
        print(error, flush=True)
        if "cancelled at step" not in str(error):
            raise
    else:
        raise RuntimeError("training ended before it was cancelled")
    emptied(torch)
    made = train(rows, base_json, values, str(job))
    metrics = made["metrics"]
    print(json.dumps(metrics), flush=True)
    (Path(out) / "adapter.txt").write_text(made["adapter"])
    (Path(out) / "line.txt").write_text(
        f"| {name} | {recipe.training.max_length} | {metrics['peak_memory_gib']:.2f} | "
        f"{metrics['tokens_per_second']:,.0f} | {metrics['first_loss']:.3f} -> "
        f"{metrics['last_loss']:.3f} | {largest(Path(made['adapter'])):.1e} |"
    )


def merge_one(name: str, base: str, rows: str, out: str) -> None:
    """Merge, compare with the adapter, reload and write summaries."""
    import torch

    from tasks.merge.merge import merge_and_check
    from tasks.models import find_base

    recipe, folder = chosen(name, Path(base)), Path(out)
    if name.startswith("llama2"):
        as_a_small_card(torch)
    base_json, values = find_base.find_base(recipe).as_json(), recipe.model_dump(mode="json")
    adapter = (folder / "adapter.txt").read_text()
    started = time.monotonic()
    merged = merge_and_check(base_json, adapter, rows, values, str(folder / "package"))
    seconds, peak = time.monotonic() - started, emptied(torch)
    line = (folder / "line.txt").read_text()
    line += f" {seconds:.0f} | {merged['drift']['kl']:.1e} | {peak:.2f} |"
    (folder / "line.txt").write_text(line)
    wrote = summaries(folder / "package", rows, recipe.evaluation.batch_size)
    (folder / "line.txt").write_text(f"{line} {wrote} | {emptied(torch):.2f} |")


def emptied(torch: Any) -> float:
    """The peak so far, GiB; the next one counts from here."""
    peak = float(torch.cuda.max_memory_allocated()) / 2**30
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak


def summaries(package: Path, rows: str, size: int) -> str:
    """Load the merged package afresh and write the batch with the longest documents."""
    from tasks.contracts.records import read_rows
    from tasks.serving.summarizer import Generator

    documents = sorted((row.document for row in read_rows(Path(rows))), key=len)[-size:]
    generator = Generator(package)
    started = time.monotonic()
    found = generator.summarize_batch(documents)
    return f"{max(s.prompt_tokens for s in found)} | {time.monotonic() - started:.1f}"


def chosen(name: str, base: Path, data: Path | None = None) -> Any:
    """The recipe over a base of this machine; all else but the number of steps is its own."""
    from flows import recipes

    source, fields = DATA[name]
    sets = [
        f"base.model={base}",
        "base.revision=null",
        f"data.train={data / source if data else 'none.jsonl'}",
        "data.evaluation=null",
        "data.revision=null",
        "data.evaluation_share=0.2",
        "data.train_rows=300",
        f"data.fields={json.dumps(fields)}",
        f"training.max_steps={STEPS}",
        "training.gradient_accumulation_steps=1",
        f"training.save_steps={STEPS // 2}",
        "training.logging_steps=1",
        # Random weights give near-equal logits, whose order rounding decides.
        "merge.min_top1_agreement=0",
        "merge.max_kl=100",
        "merge.drift_rows=2",
        "merge.drift_tokens=1",
    ]
    return recipes.load(ROOT / f"deployments/recipes/{name.partition('@')[0]}.yaml", sets)


def cancel_after_a_checkpoint(job: Path) -> None:
    """Have this process told to end once a checkpoint is whole, as a cancelled flow tells it."""

    def watch() -> None:
        while not list(job.glob("checkpoints/checkpoint-*/complete.json")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def largest(adapter: Path) -> float:
    """The largest entry of any B: all were zero before training."""
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    return max(float(t.abs().max()) for name, t in tensors.items() if "lora_B" in name)


def write_rows(out: Path, data: Path, base: Path) -> None:
    """Canonical rows of every recipe, by ingest, measured with a small base's tokenizer."""
    from tasks.ingest.prepare import prepare
    from tasks.models import find_base

    for name in DATA:
        recipe = chosen(name, base, data)
        found = find_base.find_base(recipe)
        prepare(recipe.data, recipe.prompt, found.settings, found.path, out / "ingested" / name)
        shutil.copyfile(out / "ingested" / name / "train.jsonl", out / f"{name}.jsonl")


def as_a_small_card(torch: Any) -> None:
    """fp16 only, 15 GiB, and none of the kernels that a T4 lacks."""
    from unittest import mock

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(CAP_GIB * 2**30 / total)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    mock.patch("torch.cuda.is_bf16_supported", return_value=False).start()
    mock.patch("tasks.train.attention._has_kernel", return_value=False).start()


if __name__ == "__main__":
    try:
        if sys.argv[1] == "--train":
            train_one(*sys.argv[2:])
        elif sys.argv[1] == "--merge":
            merge_one(*sys.argv[2:])
        elif sys.argv[1] == "--rows":
            write_rows(*map(Path, sys.argv[2:]))
        else:
            main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
    except Exception:
        traceback.print_exc()
        raise
