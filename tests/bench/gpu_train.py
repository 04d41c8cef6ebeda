"""Training on one GPU, precis beside its peers: tokens a second, peak memory, first loss.

    python tests/bench/gpu_train.py OUT ROWS TOKENIZER GROUP[=VARIANT,VARIANT] ...

ROWS is DialogSum's train.jsonl, TOKENIZER a folder with a tokenizer of at most 32,000 entries; the
models are random weights of a known model's shape, made under OUT/models. Each variant is a process
of its own. Those of one group are loaded together and take turns, so that their timed parts are
interleaved; a variant that fails prints its traceback and the others go on. GROUPS below says what
there is; `check` compares gradients with plain PEFT's. PROFILE names a variant of precis whose steps
are profiled. Needs no Prefect; trl, and for variants of unsloth's its packages in a folder of their own,
UNSLOTH_SITE: they want another trl.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM, PART, PARTS = 8, 6, 3  # steps before timing, steps a timed part, timed parts
PROFILED = 2  # steps after them, where PROFILE names the variant
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
# Unsloth's names of what the others' target_modules "all-linear" comes to.
LINEARS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "phi": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"],
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


class Turns:
    """Who may use the GPU: the members of a group in order, again and again, through one file."""

    def __init__(self, folder: Path, me: str, members: list[str]) -> None:
        self.folder, self.me, self.members = folder, me, members

    def wait(self, part: int) -> None:
        """Until it is this member's turn in part `part` (-1: to load, warm up and compile)."""
        while self._next() != (part, self.me):
            time.sleep(0.05)

    def pass_on(self, part: int) -> None:
        """The turn is over, or the member has ended; then it passes all its turns."""
        (self.folder / f"{self.me}.{part}").touch()

    def end(self) -> None:
        for part in range(-1, PARTS):
            self.pass_on(part)

    def _next(self) -> tuple[int, str] | None:
        for part in range(-1, PARTS):
            for member in self.members:
                if not (self.folder / f"{member}.{part}").exists():
                    return part, member
        return None


def start_adapter(model: Any) -> None:
    """The same adapter for all, in numbers that bf16 holds: TRL's adapter is in bf16."""
    import torch

    named = [p for n, p in model.named_parameters() if "lora_A" in n]
    for i, parameter in enumerate(named):
        made = torch.Generator(parameter.device).manual_seed(i)
        start = torch.randn(parameter.shape, generator=made, device=parameter.device)
        parameter.data.copy_((start * 0.02).bfloat16())


def segments(turns: Turns, count: Any, found: dict[str, Any], profiled: Path | None = None) -> Any:
    """A TrainerCallback that times PARTS parts; `count()` gives non-pad tokens so far.

    With a folder `profiled`, PROFILED more steps are profiled into it before the last turn ends.
    """
    import torch
    from transformers import TrainerCallback

    class Segments(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
            start_adapter(model)
            turns.wait(-1)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step - WARM
            if step % PART or not 0 <= step < PART * PARTS:
                return
            torch.cuda.synchronize()
            if not step:
                found["warm_peak"] = torch.cuda.max_memory_allocated() / 2**30
                turns.pass_on(-1)
            turns.wait(step // PART)
            if not step:
                torch.cuda.reset_peak_memory_stats()
            self.tokens, self.started = count(), time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step - WARM
            if profiled and step == PART * PARTS + PROFILED:
                torch.cuda.synchronize()
                self.profiler.stop()
                write_profile(self.profiler, profiled)
                turns.pass_on(PARTS - 1)
            if step <= 0 or step % PART or step > PART * PARTS:
                return
            torch.cuda.synchronize()
            seconds = time.monotonic() - self.started
            found["tokens_s"].append((count() - self.tokens) / seconds)
            found["step_ms"].append(seconds / PART * 1e3)
            found["peak"] = torch.cuda.max_memory_allocated() / 2**30
            if step == PART * PARTS and profiled:
                self.profiler = torch.profiler.profile(
                    activities=[torch.profiler.ProfilerActivity.CUDA]
                )
                self.profiler.start()
            else:
                turns.pass_on(step // PART - 1)

        def on_train_end(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            first = next(line for line in state.log_history if "loss" in line)
            found.update(loss=first["loss"], grad_norm=first.get("grad_norm"))
            norms = [
                p.detach().float().norm() for n, p in model.named_parameters() if "lora_B" in n
            ]
            found["adapter"] = float(torch.stack(norms).norm())

    found |= {"tokens_s": [], "step_ms": []}
    return Segments()


def precis(
    shape: Path, training: dict[str, Any], more: dict[str, Any], turns: Turns, out: Path
) -> dict[str, Any]:
    """The flow's own training step."""
    import torch

    from tasks.models import loading

    if more.get("gib"):
        torch.cuda.set_per_process_memory_fraction(
            more["gib"] * 2**30 / torch.cuda.get_device_properties(0).total_memory
        )
    if more.get("fp16"):
        torch.backends.cuda.enable_flash_sdp(False)
        loading.compute_dtype = lambda: torch.float16
    found: dict[str, Any] = {}
    wanted = out if os.environ.get("PROFILE") == turns.me else None

    def listen(trainer: Any) -> None:
        tokens = lambda: trainer.meter.read()["tokens"]  # noqa: E731
        trainer.add_callback(segments(turns, tokens, found, wanted))

    rows = shape.parent / ("bills.jsonl" if more.get("long") else "rows.jsonl")
    metrics = train_precis(shape, steps() | training, rows, out, listen)
    notes = [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]
    found["notes"] = [line["text"] for line in notes if line["kind"] == "note"]
    found["predicted"] = metrics.get("predicted_memory_gib")
    return found


def train_precis(
    shape: Path,
    training: dict[str, Any],
    rows: Path,
    out: Path,
    listen: Callable[[Any], None],
) -> dict[str, Any]:
    """tasks.train.qlora.train in OUT/job, `listen` called with its trainer first; its metrics."""
    from unittest import mock

    from tasks.contracts.recipe import Recipe
    from tasks.models import find_base
    from tasks.models.prepared_base import BaseFolder
    from tasks.train import qlora

    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "data": {"train": "-"},
            "base": {"model": str(shape), "quantization": quantization()},
            "training": training,
        }
    )
    run = qlora._run

    def listened(trainer: Any, resume: Any) -> None:
        listen(trainer)
        run(trainer, resume)

    os.environ["PRECIS_CHILD_FOLDER"] = str(out)  # notes and progress lines are kept there
    # Without a digest: hashing 13 GB for each variant would cost more device time than training does.
    base = find_base.prepare(recipe, BaseFolder.read(shape), str(shape)).as_json()
    with mock.patch.object(qlora, "_run", listened):
        answer = qlora.train(str(rows), base, recipe.model_dump(mode="json"), str(out / "job"))
    found: dict[str, Any] = answer["metrics"]
    return found


def quantization() -> str:
    """Of all base models. Where a script is tried on a CPU nothing is rounded."""
    import torch

    return "nf4" if torch.cuda.is_available() else "none"


def write_profile(profiler: Any, folder: Path) -> None:
    """Where the milliseconds of the profiled steps went: kernels by name, and gaps between them."""
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    on_gpu = ("kernel", "gpu_memcpy", "gpu_memset")
    seen = sorted(
        (e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e.get("cat") in on_gpu
    )
    sums: dict[str, list[float]] = {}
    gaps, end, before = [], seen[0][0], ""
    for start, stop, name in seen:
        sums.setdefault(name, []).append(stop - start)
        if start > end:
            gaps.append((start - end, before, name))
        if stop > end:
            end, before = stop, name
    total, idle = (end - seen[0][0]) / 1e3, sum(gap[0] for gap in gaps) / 1e3
    lines = [
        f"{PROFILED} steps: {total:.1f} ms from the first kernel to the last, {idle:.1f} ms idle in "
        f"{len(gaps)} gaps, {sum(g[0] for g in gaps if g[0] > 100) / 1e3:.1f} of it in gaps over 0.1 ms"
    ]
    for size, last, following in sorted(gaps, reverse=True)[:10]:
        lines.append(f"gap {size / 1e3:8.2f} ms between {last[:60]} and {following[:60]}")
    for name, times in sorted(sums.items(), key=lambda item: -sum(item[1]))[:60]:
        ms = sum(times) / 1e3
        lines.append(
            f"{ms:9.2f} ms {len(times):6d} x {ms / len(times) * 1e3:8.1f} us  {name[:110]}"
        )
    (folder / "profile.txt").write_text("\n".join(lines))
    trace.unlink()


def steps() -> dict[str, Any]:
    """Training settings common to all."""
    total = WARM + PART * PARTS + PROFILED
    return {"max_steps": total, "logging_steps": total, "save_steps": 10_000, "learning_rate": 2e-4}


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

    from tasks.models import loading, quantization

    tokenizer, dataset = encoded(shape, training["max_length"])
    dtype = loading.compute_dtype()
    model = AutoModelForCausalLM.from_pretrained(
        shape,
        quantization_config=quantization.config(quantization(), dtype),
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
    import importlib

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


def one(name: str, members: list[str], out: Path) -> None:
    """A variant, in a process of its own."""
    turns = Turns(out / "turns", name, members)
    who, shape, training, more = VARIANTS[name]
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = {"precis": precis, "trl": trl, "unsloth": unsloth}[who](
            out / "models" / shape, training, more, turns, folder
        )
        (folder / "found.json").write_text(json.dumps(found))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        turns.end()


def _give_up_turns(name: str, members: list[str], out: Path, process: Any) -> None:
    process.wait()
    Turns(out / "turns", name, members).end()


def line(name: str, out: Path) -> str:
    """A row of the table."""
    path = out / name / "found.json"
    if not path.exists():
        return (
            f"{name:12} failed; {out / name / 'log.txt'} ends:\n"
            + (out / name / "log.txt").read_text()[-1200:]
        )
    f = json.loads(path.read_text())
    parts = " ".join(f"{x:.0f}" for x in f["tokens_s"])
    predicted = f.get("predicted") or float("nan")
    return (
        f"{name:12} {statistics.median(f['tokens_s']):8.0f} tok/s [{parts}]  "
        f"{statistics.median(f['step_ms']):7.1f} ms  peak {f['peak']:6.2f} GiB "
        f"(before {f['warm_peak']:.2f}, predicted {predicted:.2f})  loss {f['loss']:.5f} "
        f"grad {f['grad_norm']:.4f}  |B| {f['adapter']:.4f}"
        + "".join(f"\n    {note}" for note in f.get("notes", []))
    )


def _environment(name: str, out: Path) -> dict[str, str]:
    """A variant's: Unsloth's packages go before all others, and are seen by it alone."""
    env = dict(os.environ)
    if VARIANTS[name][0] != "unsloth":
        return env
    site = Path(env["UNSLOTH_SITE"])
    # xformers' kernels are linked with another release of the CUDA runtime than torch's.
    firsts = {"PYTHONPATH": site, "LD_LIBRARY_PATH": site / "nvidia/cuda_runtime/lib"}
    for path, first in firsts.items():
        env[path] = os.pathsep.join(filter(None, [str(first), env.get(path, "")]))
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "UNSLOTH_DISABLE_STATISTICS")
    compiled = {"UNSLOTH_COMPILE_LOCATION": str((out / name / "compiled").absolute())}
    return env | dict.fromkeys(offline, "1") | compiled


def check(folder: Path) -> None:
    """The fast path on the GPU against plain PEFT in float32 on the CPU: a small Llama and a small Phi."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1]))
    import tiny
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from tasks.costs import memory_plan
    from tasks.models import loading
    from tasks.train import attention, qlora
    from tasks.train.fast_path import setup, varlen_attention
    from tasks.train.trainer import completion_loss

    bases = {
        "llama": tiny.make_tiny_base(folder / "llama", hidden=256, tied=False),
        "phi": _small_phi(folder / "phi", tiny),
    }
    rows = tiny.write_rows(folder / "rows.jsonl", tiny.make_rows(40))
    least = memory_plan.Plan(selective=True, recomputed=2, offload=True)
    variants = [
        ("plain", None, torch.bfloat16, True),
        ("none", memory_plan.Plan(), torch.bfloat16, True),
        ("least", least, torch.bfloat16, True),
        ("no flash", memory_plan.Plan(), torch.bfloat16, False),
        ("no flash fp16", memory_plan.Plan(), torch.float16, False),
    ]
    for name, base in bases.items():
        recipe = tiny.make_recipe(base, base={"quantization": "none"})
        expected: dict[str, Any] = {}
        for title, plan, dtype, flash in variants:
            torch.backends.cuda.enable_flash_sdp(flash)
            loading.compute_dtype = lambda dtype=dtype: dtype
            setup.choose_plan = lambda *_: None
            job = folder / f"{name}-{title}".replace(" ", "-")
            trainer = qlora.build_trainer(rows, tiny.prepared(base, recipe), recipe, job)[0]
            examples = [trainer.train_dataset[i] for i in range(2)]
            batch = trainer.data_collator(examples)
            if plan:
                trainer.model.set_attn_implementation(varlen_attention.register())
                shape = setup.shape_for(trainer.model.get_base_model(), recipe)
                compiler = "inductor" if title == "none" else "aot_eager"
                assert setup.enable(trainer, (plan, shape), compiler)
            for i, p in enumerate(p for p in trainer.model.parameters() if p.requires_grad):
                made = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
                p.data.copy_(made * 0.05)
            if not expected:
                plain = AutoModelForCausalLM.from_pretrained(
                    base, dtype=torch.float32, attn_implementation=attention.register()
                )
                reference = get_peft_model(plain, qlora.lora_config(recipe)).train()
                held = trainer.model.state_dict()
                reference.load_state_dict({n: held[n].cpu() for n in reference.state_dict()})
                truth = completion_loss(reference, dict(batch))
                truth.backward()
                expected = _gradients(reference)
                print(f"check {name:6} cpu float32    loss {truth.item():.5f}", flush=True)
            if plan:
                batch = trainer.data_collator(examples)
            batch = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=plan is None):
                run = (
                    trainer.fast_path
                    if plan
                    else functools.partial(completion_loss, trainer.model.train())
                )
                loss = run(batch)
            loss.backward()
            found = _gradients(trainer.model)
            off = [float((found[n] - e).norm() / e.norm()) for n, e in expected.items()]
            print(
                f"check {name:6} {title:14} loss {loss.item():.5f}  gradients off by {max(off):.4f} at "
                f"most, median {statistics.median(off):.4f}  "
                f"compiled {trainer.fast_path.compiled if plan else '-'}",
                flush=True,
            )


def _small_phi(folder: Path, tiny: Any) -> Path:
    import torch
    from transformers import PhiConfig, PhiForCausalLM

    folder.mkdir(parents=True)
    tiny.make_tokenizer(folder)
    config = PhiConfig(
        vocab_size=512,
        hidden_size=320,
        intermediate_size=640,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        resid_pdrop=0.0,
    )
    torch.manual_seed(0)
    PhiForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _gradients(model: Any) -> dict[str, Any]:
    return {n: p.grad.float().cpu() for n, p in model.named_parameters() if p.grad is not None}


def main(out: Path, source: Path, tokenizer: Path, *wanted: str) -> None:
    """Make models and rows, run the groups, print the table."""
    models = out / "models"
    models.mkdir(parents=True, exist_ok=True)
    make_rows(source, models)
    table = []
    for group in wanted:
        if group == "check":
            subprocess.run([sys.executable, __file__, "--check", str(out / "check")], check=False)
            continue
        title, _, chosen = group.partition("=")
        members = chosen.split(",") if chosen else GROUPS[title]
        for shape in sorted({VARIANTS[name][1] for name in members}):
            if not (models / shape / "config.json").exists():
                subprocess.run(
                    [
                        sys.executable,
                        __file__,
                        "--make",
                        shape,
                        str(models / shape),
                        str(tokenizer),
                    ],
                    check=True,
                )
        (out / "turns").mkdir(exist_ok=True)
        for old in (out / "turns").iterdir():
            old.unlink()
        running = []
        for name in members:
            (out / name).mkdir(parents=True, exist_ok=True)
            with (out / name / "log.txt").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [sys.executable, __file__, "--one", name, ",".join(members), str(out)],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=_environment(name, out),
                    )
                )
        for name, process in zip(members, running, strict=True):
            threading.Thread(target=_give_up_turns, args=(name, members, out, process)).start()
        for process in running:
            process.wait()
        for name in members:
            table.append(f"{title:8} {line(name, out)}")
            print(table[-1], flush=True)
    import torch

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    (out / "table.txt").write_text("\n".join(table))


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        make_model(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    elif sys.argv[1] == "--check":
        check(Path(sys.argv[2]))
    elif sys.argv[1] == "--one":
        one(sys.argv[2], sys.argv[3].split(","), Path(sys.argv[4]))
    else:
        main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
