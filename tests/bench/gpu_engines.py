"""vLLM beside precis's continuous decoding: one machine, one run, the same prompts, greedy.

    python tests/bench/gpu_engines.py OUT ROWS SMALL [VARIANT ...]

ROWS is DialogSum's dev.jsonl, SMALL a small trained model. Three tasks: `same`, SMALL in float32, do the
engines write the same texts; `speed`, an evaluation of 200 dialogues by a model of Llama-2-7B's shape in
bf16, whose summaries end at varied lengths; `fixed`, 500 dialogues by it, 128 tokens each, end tokens
ignored. Each variant is a process of its own, as in an evaluation, and prints one line of JSON, which
OUT/engines.json gathers: `whole_s` is from the start of the process to its first set of texts. One that
fails says why, and the others go on. It needs torch, transformers and vLLM, and of precis tasks/serving
alone. Over 250 lines: one script, to be carried to a GPU machine as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 130
TEMPLATE = "Summarize the following conversation.\n\n{document}\n\nSummary: "
SOURCE_TOKENS = 1500
END = 2  # the large model's
# Of random weights' 32,000 logits the largest is at about 4.1 deviations: an end token's row that is as
# much longer wins one time in about 45, so that summaries end at varied lengths.
END_ROW = 2.05


@dataclass(frozen=True)
class Task:
    model: str
    documents: int
    new_tokens: int
    ends: list[int] | None  # None: the tokenizer's


@dataclass(frozen=True)
class Variant:
    engine: str
    slots: int = 256
    more: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


TASKS = {
    "speed": Task("large", 200, 128, [END]),
    "same": Task("small", 500, 60, None),
    "fixed": Task("large", 500, 128, []),
}
GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}  # no torch.compile: a shorter start
VARIANTS = {  # the first part of a name is its task
    "speed-continuous": Variant("precis"),
    "speed-vllm": Variant("vllm"),
    "speed-vllm-again": Variant("vllm"),  # what it compiled is there
    "speed-vllm-eager": Variant("vllm", more={"enforce_eager": True}),
    "speed-vllm-graphs": Variant("vllm", more={"compilation_config": GRAPHS}),
    "same-continuous": Variant("precis"),
    "same-vllm": Variant("vllm"),
    "same-vllm-ieee": Variant("vllm", environment={"TRITON_F32_DEFAULT": "ieee"}),
    "same-vllm-flex": Variant("vllm", more={"attention_backend": "FLEX_ATTENTION"}),
    "same-generate": Variant("precis", 16, {"decoding": "generate"}),
    "fixed-continuous": Variant("precis", 500),
    "fixed-vllm": Variant("vllm", 512),
    "speed-vllm-v1": Variant("vllm", environment={"VLLM_USE_V2_MODEL_RUNNER": "0"}),
}


def make_large(folder: Path, small: Path) -> None:
    """Random weights of Llama-2-7B's shape in bf16, with the small model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, max_position_embeddings=4096, bos_token_id=1, eos_token_id=END,
        pad_token_id=0, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    model.lm_head.weight.data[END] *= END_ROW
    model.save_pretrained(folder, max_shard_size="5GB")
    AutoTokenizer.from_pretrained(small).save_pretrained(folder)


def settings(task: Task, variant: Variant) -> Any:
    from tasks.serving.summarizer import SummarizerSettings

    decoding = variant.more.get("decoding", "continuous")
    return SummarizerSettings(
        TEMPLATE, SOURCE_TOKENS, "tail", task.new_tokens, variant.slots, decoding=decoding
    )


def by_precis(folder: Path, texts: list[str], task: Task, variant: Variant) -> dict[str, Any]:
    import torch

    from tasks.serving.summarizer import Generator, load_model

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    if task.model == "small":
        load_model._dtype = lambda device: torch.float32
    settings(task, variant).save(folder)
    begun = time.monotonic()
    generator = Generator(folder)
    wait()
    loaded = time.monotonic() - begun
    if task.ends is not None:
        generator.end_ids = task.ends
        generator.model.generation_config.eos_token_id = task.ends or None

    def write() -> list[tuple[str, int]]:
        found = generator.summarize(texts)
        wait()
        return [(s.text, s.output_tokens) for s in found]

    measured = runs(write)
    decoder = generator.decoder()
    more = {"slots": decoder.usable_slots} if decoder else {"refusal": generator.refusal}
    peak = torch.cuda.max_memory_allocated() / 2**30
    dtype = str(generator.model.dtype)
    return measured | more | {"loaded_s": loaded, "peak_gib": peak, "dtype": dtype}


def by_vllm(folder: Path, texts: list[str], task: Task, variant: Variant) -> dict[str, Any]:
    """Prompts are precis's own token ids, and its rules make texts of what is written."""
    from transformers import AutoTokenizer

    from tasks.serving.summarizer import encode
    from tasks.serving.summarizer.output import OutputRules

    begun = time.monotonic()
    import vllm

    imported = time.monotonic() - begun
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dtype = "float32" if task.model == "small" else "bfloat16"
    begun = time.monotonic()
    engine = vllm.LLM(
        str(folder), dtype=dtype, max_num_seqs=variant.slots, seed=0, generation_config="vllm",
        max_model_len=SOURCE_TOKENS + task.new_tokens, enable_prefix_caching=False, **variant.more,
    )  # fmt: skip
    loaded = time.monotonic() - begun
    ends = [tokenizer.eos_token_id] if task.ends is None else task.ends
    rules = OutputRules(tokenizer, ends, ())
    asked = vllm.SamplingParams(
        temperature=0.0, max_tokens=task.new_tokens, ignore_eos=True, stop_token_ids=ends,
        detokenize=False,
    )  # fmt: skip

    def write() -> list[tuple[str, int]]:
        prompts = [encode(tokenizer, text, settings(task, variant)) for text in texts]
        requests = [{"prompt_token_ids": ids} for ids in prompts]
        answers = engine.generate(requests, asked, use_tqdm=False)
        found = [
            rules.summary(list(answer.outputs[0].token_ids), len(ids), 0)
            for answer, ids in zip(answers, prompts, strict=True)
        ]
        return [(s.text, s.output_tokens) for s in found]

    more = {"imported_s": imported, "loaded_s": loaded, "dtype": dtype, "vllm": vllm.__version__}
    return runs(write) | more


def runs(write: Any) -> dict[str, Any]:
    """The first call, which is an evaluation's only one, then two more: is it slower than they are?"""
    seconds, written = [], []
    whole = 0.0
    for _ in range(3):
        begun = time.monotonic()
        written.append(write())
        seconds.append(round(time.monotonic() - begun, 3))
        whole = whole or time.time() - float(os.environ["BEGUN"])
    lengths = sorted(tokens for _, tokens in written[0])
    return {
        "whole_s": whole, "first_s": seconds[0], "again_s": seconds[1:], "tokens": sum(lengths),
        "lengths": [lengths[len(lengths) * part // 10] for part in (1, 5, 9)],
        "tokens_per_second_first": sum(lengths) / seconds[0],
        "tokens_per_second_again": sum(tokens for _, tokens in written[2]) / seconds[2],
        "again_equal": sum(a == b for a, b in zip(written[0], written[2], strict=True)),
        "texts": [text for text, _ in written[0]],
    }  # fmt: skip


def one(name: str, out: Path, rows: Path) -> None:
    task, variant = TASKS[name.partition("-")[0]], VARIANTS[name]
    lines = rows.read_text().splitlines()[: task.documents]
    documents = [json.loads(line)["dialogue"] for line in lines]
    call = {"precis": by_precis, "vllm": by_vllm}[variant.engine]
    found = call(out / task.model, documents, task, variant)
    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}
    (out / f"{name}.json").write_text(json.dumps(rounded))


def main(out: Path, rows: Path, small: Path, *names: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "small").is_dir():
        shutil.copytree(small, out / "small", copy_function=shutil.copyfile)
    if not (out / "large").is_dir():
        make_large(out / "large", small)
    gathered, texts_file = out / "engines.json", out / "texts.json"
    results: dict[str, Any] = json.loads(gathered.read_text()) if gathered.exists() else {}
    texts: dict[str, list[str]] = json.loads(texts_file.read_text()) if texts_file.exists() else {}
    for name in names or VARIANTS:
        peak, process_seconds, log = watched(name, out, rows)
        answer = out / f"{name}.json"
        found = json.loads(answer.read_text()) if answer.exists() else {"failed": log[-2500:]}
        texts[name] = found.pop("texts", [])
        first = next((n for n in texts if n.split("-")[0] == name.split("-")[0]), name)
        same = sum(a == b for a, b in zip(texts[name], texts[first], strict=False))
        found |= {"equal_to": f"{first}: {same}", "process_s": process_seconds, "gpu_mib": peak}
        results[name] = found
        print(name, json.dumps(found)[-900:], flush=True)
        gathered.write_text(json.dumps(results, indent=1))
        texts_file.write_text(json.dumps(texts))
        if "OUT" in os.environ:
            for file in (gathered, texts_file):
                shutil.copy(file, os.environ["OUT"])


def watched(name: str, out: Path, rows: Path) -> tuple[int, float, str]:
    """Run a variant: the most GPU memory in use (MiB), seconds of the process, and what it printed."""
    words = [sys.executable, __file__, "--one", name, str(out), str(rows)]
    begun, peak, log = time.time(), 0, out / f"{name}.log"
    environment = os.environ | VARIANTS[name].environment | {"BEGUN": str(begun)}
    with log.open("w") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=stream, env=environment)
        while process.poll() is None and time.time() - begun < LIMIT_SECONDS:
            peak = max(peak, used_mib())
            time.sleep(0.5)
        process.kill()
    return peak, round(time.time() - begun, 1), log.read_text()


def used_mib() -> int:
    words = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1] == "--one":
        one(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
