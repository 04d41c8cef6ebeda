"""Summaries for evaluation on one GPU: today's path, transformers' own continuous batching, ours.

    python tests/bench/gpu_generate.py OUT ROWS TOKENIZER [VARIANT ...]

ROWS is DialogSum's dev.jsonl (its first 500 dialogues are written about), TOKENIZER a folder with a
tokenizer of at most 32,000 entries; the model is random weights of Llama-2-7B's shape in bf16, made
under OUT/model. End tokens are ignored: every summary has 128 tokens. Each variant is a process of its
own; one that fails or takes over its limit prints why, and the others go on. VARIANTS below says what
there is. Prints one table, and below it where a decode step's milliseconds go. Needs no Prefect.
TINY=1: a tiny model and 12 short rows, to try the script on a CPU.

Over 250 lines: one script, to be carried to a GPU machine as it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

TINY = os.environ.get("TINY") == "1"
ROWS, NEW = (12, 8) if TINY else (500, 128)
LIMIT_SECONDS = 110
PROFILED = range(24, 28) if not TINY else range(2, 3)  # decode steps: all slots are taken
SHAPE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 64 if TINY else 4096,
    "intermediate_size": 128 if TINY else 11008,
    "num_hidden_layers": 2 if TINY else 32,
    "num_attention_heads": 4 if TINY else 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
# name: (how, batch size or slots, more)
VARIANTS: dict[str, tuple[str, int, str]] = {
    "check": ("check", 8, ""),
    "kernels": ("kernels", 256, ""),
    "continuous-256": ("continuous", 256, "profile"),
    "continuous-128": ("continuous", 128, ""),
    "continuous-500": ("continuous", 500, ""),
    "flash-256": ("continuous", 256, "flash"),  # decode by FlashAttention-2 in place of our kernel
    "generate-64": ("generate", 64, ""),
    "paged": ("paged", 256, ""),
}
HEADS = ("variant", "new tokens/s", "s a call", "s first call", "new tokens", "ms a decode step")
HEADS += ("decode steps", "ms a packed step", "packed steps", "peak GiB", "notes")
CLASSES = {
    "attention": ("decode_kernel", "flash", "fmha", "attention"),
    "matrix products": ("gemm", "nvjet", "cutlass", "splitk", "gemv", "cublas"),
    "norms": ("rms", "layer_norm"),
    "keys and values kept": ("index_copy", "index_put", "scatter"),
}


def make_model(folder: Path, tokenizer: Path) -> None:
    """Random weights of the shape, in bf16."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPE, bos_token_id=1, eos_token_id=2, pad_token_id=0, dtype="bfloat16")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="5GB")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def loaded(folder: Path, decoding: str, size: int) -> Any:
    """A Generator over the model, as a package of its own; end tokens are ignored."""
    from tasks.models import package
    from tasks.serving.summarizer import Generator, SummarizerSettings

    template = "Summarize the following conversation.\n\n{document}\n\nSummary: "
    settings = SummarizerSettings(template, 3000, "tail", NEW, size, decoding=decoding)
    package.add_summarizer(folder, settings)
    generator = Generator(folder)
    generator.end_ids = []
    generator.model.generation_config.eos_token_id = None
    return generator


def documents_of(rows: Path) -> list[str]:
    found = [json.loads(line)["dialogue"] for line in rows.read_text().splitlines()[:ROWS]]
    return [text[:200] for text in found] if TINY else found


def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    started = time.monotonic()
    found = call()
    wait()
    return time.monotonic() - started, found


def generate(folder: Path, rows: Path, size: int, more: str) -> dict[str, Any]:
    """Today's path: length-sorted batches through transformers' generate."""
    generator, documents = loaded(folder, "generate", size), documents_of(rows)
    first, _ = seconds_of(lambda: generator.summarize(documents[:size]))
    seconds, found = seconds_of(lambda: generator.summarize(documents))
    steps = -(-len(documents) // size) * NEW
    return measured(seconds, first, sum(s.output_tokens for s in found)) | {
        "step": seconds / steps * 1e3,
        "steps": steps,
    }


def paged(folder: Path, rows: Path, size: int, more: str) -> dict[str, Any]:
    """transformers' generate_batch over the same prompts, with what this machine has for it."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    from tasks.serving.summarizer import encode

    generator, documents = loaded(folder, "generate", size), documents_of(rows)
    # Without flash-attn its attention is one dense mask over all that is kept: fewer rows, or it takes
    # minutes. Blocks of 32 waste least at these lengths.
    prompts = [encode(generator.tokenizer, text, generator.settings) for text in documents[:128]]
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    tokens = sum(len(prompt) + NEW for prompt in prompts)
    batching = ContinuousBatchingConfig(
        block_size=32,
        num_blocks=tokens // 32 + 2 * len(prompts),
        max_batch_tokens=2048,
        max_requests_per_batch=128,
        allow_block_sharing=False,
    )
    settings = {"generation_config": config, "continuous_batching_config": batching}
    call = lambda: generator.model.generate_batch(prompts, progress_bar=False, **settings)  # noqa: E731
    first, _ = seconds_of(lambda: generator.model.generate_batch(prompts[:8], **settings))
    seconds, found = seconds_of(call)
    made = sum(len(one.generated_tokens) for one in found.values())
    return measured(seconds, first, made) | {
        "notes": f"{len(found)} rows; attention {generator.model.config._attn_implementation}"
    }


def continuous(folder: Path, rows: Path, size: int, more: str) -> dict[str, Any]:
    """Ours: the first call records its steps, the second is timed, the third is looked into."""
    import torch

    generator, documents = loaded(folder, "continuous", size), documents_of(rows)
    decoder = generator.decoder()
    if decoder is None:
        raise RuntimeError(generator.refusal)
    if more == "flash":
        decoder.steps.attend.__func__.__globals__["decode_attention"] = by_flash
    first, _ = seconds_of(lambda: generator.summarize(documents))
    seconds, found = seconds_of(lambda: generator.summarize(documents))
    result = measured(seconds, first, sum(s.output_tokens for s in found))
    watch = Watch(decoder.steps, profiled=more == "profile")
    decoder.steps._run, kept = watch, decoder.steps._run
    again = generator.summarize(documents)
    decoder.steps._run = kept
    result |= watch.read()
    part = documents[100:160] or documents[3:7]
    alone = generator.summarize(part)
    whole = found[100:160] or found[3:7]
    same = sum(a.text == b.text for a, b in zip(alone, whole, strict=True))
    notes = f"{decoder.usable_slots} of {size} slots; again equal {again == found}; "
    notes += f"{same} of {len(part)} alone as among all"
    if torch.cuda.is_available():
        notes += f"; reserved {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB"
    return result | {"notes": notes}


class Watch:
    """Stands before a decoder's steps: how long each kind takes; and some decode steps' kernels."""

    def __init__(self, steps: Any, profiled: bool) -> None:
        import torch

        self.torch, self.run, self.gpu = torch, steps._run, torch.cuda.is_available()
        self.times: dict[str, list[Any]] = {"prefill": [], "decode": []}
        self.profiler: Any = None
        self.wanted = profiled

    def __call__(self, name: str, step: Any) -> None:
        number = len(self.times["decode"])
        if self.wanted and name == "decode" and number == PROFILED.start:
            self._wait()
            kind = self.torch.profiler.ProfilerActivity
            self.profiler = self.torch.profiler.profile(
                activities=[kind.CUDA if self.gpu else kind.CPU]
            )
            self.profiler.start()
        begun = self._now()
        self.run(name, step)
        self.times[name].append((begun, self._now()))
        if self.profiler and self.wanted and name == "decode" and number + 1 == PROFILED.stop:
            self._wait()
            self.profiler.stop()
            self.wanted = False

    def read(self) -> dict[str, Any]:
        self._wait()
        found: dict[str, Any] = {}
        for name, (step, steps) in {
            "decode": ("step", "steps"),
            "prefill": ("pack", "packs"),
        }.items():
            spans = [self._ms(*span) for span in self.times[name]]
            found |= {step: sum(spans) / len(spans), steps: len(spans)}
        return found | ({"profile": self._profile()} if self.profiler else {})

    def _profile(self) -> list[str]:
        """Milliseconds of one decode step by class of kernel, then the largest kernels."""
        sums: dict[str, float] = {}
        lines: list[tuple[float, str]] = []
        for event in self.profiler.key_averages():
            spent = event.self_device_time_total if self.gpu else event.self_cpu_time_total
            ms = spent / 1e3 / len(PROFILED)
            low = event.key.lower()
            kinds = [k for k, names in CLASSES.items() if any(name in low for name in names)]
            kind = kinds[0] if kinds else "the rest"
            sums[kind] = sums.get(kind, 0.0) + ms
            lines.append(
                (ms, f"{ms:8.3f} ms {event.count / len(PROFILED):7.1f} x  {event.key[:100]}")
            )
        parts = ", ".join(
            f"{kind} {ms:.2f}" for kind, ms in sorted(sums.items(), key=lambda i: -i[1])
        )
        total = f"one decode step: {sum(sums.values()):.2f} ms of kernels: {parts}"
        return [total, *(line for _, line in sorted(lines, reverse=True)[:16])]

    def _now(self) -> Any:
        if not self.gpu:
            return time.monotonic()
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _ms(self, begun: Any, ended: Any) -> float:
        return float(begun.elapsed_time(ended) if self.gpu else (ended - begun) * 1e3)

    def _wait(self) -> None:
        if self.gpu:
            self.torch.cuda.synchronize()


def by_flash(query: Any, keys: Any, values: Any, starts: Any, lengths: Any, scale: float) -> Any:
    """Decode attention by torch's FlashAttention-2: a slot's keys begin at its bound, `seqused_k` long."""
    import torch

    slots = query.shape[0]
    each = torch.arange(slots + 1, device=query.device, dtype=torch.int32)
    bounds = torch.cat([starts, starts[-1:]]).to(torch.int32)
    longest = 4096  # of the grid alone: each slot is read as far as it goes
    return torch.ops.aten._flash_attention_forward(
        query.contiguous(), keys.transpose(0, 1), values.transpose(0, 1), each, bounds, 1, longest,
        0.0, False, False, scale=scale, seqused_k=lengths.to(torch.int32),
    )[0]  # fmt: skip


def kernels(folder: Path, rows: Path, size: int, more: str) -> dict[str, Any]:
    """Our decode attention with other block sizes and warps, and FlashAttention-2: share of 4.8 TB/s."""
    import torch

    from tasks.serving.summarizer import kernels as code

    heads, width, length = 32, 128, 294
    make = lambda *n: torch.randn(*n, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    keys, values = (make(heads, size * 430, width) for _ in range(2))
    query = make(size, heads, width)
    starts = torch.arange(size, device="cuda") * 430
    lengths = length + (torch.arange(size, device="cuda") % 101) - 50
    wanted = code.decode_attention_reference(query, keys, values, starts, lengths, 0.09).float()
    moved = 4 * heads * width * int(lengths.sum())
    lines = []

    def measure(name: str, call: Any) -> None:
        try:
            found = call(query, keys, values, starts, lengths, 0.09).float()
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            for _ in range(50):
                call(query, keys, values, starts, lengths, 0.09)
            ended.record()
            torch.cuda.synchronize()
            us = begun.elapsed_time(ended) * 20
            worst = float((found - wanted).abs().max())
            lines.append(
                f"{name}: {us:7.1f} us, {moved / us / 1e6:.2f} TB/s, largest error {worst:.1e}"
            )
        except Exception as error:  # noqa: BLE001  one that cannot run must not hide the others
            lines.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")

    for block in (32, 64, 128):
        for warps in (2, 4, 8):
            code.BLOCK_TOKENS, code.WARPS = block, warps
            measure(f"ours, {block} tokens, {warps} warps", code.decode_attention)
    measure("FlashAttention-2 with seqused_k", by_flash)
    return {"profile": lines}


def check(folder: Path, rows: Path, size: int, more: str) -> dict[str, Any]:
    """Small models in float32 on this machine's device: every token as unbatched generate writes it."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1]))
    import shapes
    import tiny

    from tasks.models import package
    from tasks.serving.summarizer import Generator, SummarizerSettings, load_model

    load_model._dtype = lambda device: torch.float32
    documents = [row.document for row in tiny.make_rows(4 if TINY else 30)]
    documents = [text * (1 + i % 4) for i, text in enumerate(documents)]
    lines, same = [], True
    for kind in ("llama", "phi", "qwen3"):
        base = shapes.make_base(folder.parent / f"small-{kind}", kind)
        settings = SummarizerSettings("S:\n{document}\nT: ", 300, "tail", 40, size)
        package.add_summarizer(base, replace(settings, decoding="continuous"))
        generator = Generator(base)
        if generator.decoder() is None:
            raise RuntimeError(generator.refusal)
        found = generator.summarize(documents)
        generator.settings = replace(settings, batch_size=1)
        wanted = generator.summarize(documents)
        equal = sum(a.text == b.text and a.output_tokens == b.output_tokens
                    for a, b in zip(found, wanted, strict=True))  # fmt: skip
        lines.append(f"{kind}, float32 on {generator.device}: {equal} of {len(documents)} equal")
        same &= equal == len(documents)
    return {"profile": lines, "notes": "equal" if same else "NOT EQUAL"}


def measured(seconds: float, first: float, tokens: int) -> dict[str, Any]:
    import torch

    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"rate": tokens / seconds, "s": seconds, "first": first, "tokens": tokens, "peak": peak}


def one(name: str, out: Path, rows: Path) -> None:
    how, size, more = VARIANTS[name]
    found = globals()[how](out / "model", rows, min(size, 4) if TINY else size, more)
    (out / f"{name}.json").write_text(json.dumps(found))


def main(out: Path, rows: Path, tokenizer: Path, *names: str) -> None:
    """Each variant in a process of its own, then the table."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "model").is_dir():
        make_model(out / "model", tokenizer)
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    below: list[str] = []
    for name in names or VARIANTS:
        started, answer = time.monotonic(), out / f"{name}.json"
        answer.unlink(missing_ok=True)
        words = [sys.executable, __file__, "--one", name, str(out), str(rows)]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
            )
            wrong = done.stderr[-1800:] if done.returncode else ""
        except subprocess.TimeoutExpired:
            wrong = f"took over {LIMIT_SECONDS} s"
        print(name, f"{time.monotonic() - started:.0f} s", wrong, flush=True)
        found = json.loads(answer.read_text()) if answer.exists() else {"notes": "FAILED"}
        keys = ("rate", "s", "first", "tokens", "step", "steps", "pack", "packs", "peak", "notes")
        cells = [name, *(shown(found.get(key)) for key in keys)]
        lines.append(f"| {' | '.join(cells)} |")
        below += [f"{name}: {line}" for line in found.get("profile", [])]
    print("\n".join([*lines, "", *below]))


def shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    try:
        if sys.argv[1] == "--one":
            one(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        else:
            main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
    except Exception:
        traceback.print_exc()
        raise
