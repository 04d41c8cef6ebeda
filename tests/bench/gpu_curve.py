"""The loss of each of 200 steps, precis beside plain TRL on the same rows: are they the same but for noise?

    python tests/bench/gpu_curve.py OUT [ROWS TOKENIZER [VARIANT ...]]

ROWS is DialogSum's train.jsonl, TOKENIZER a folder with a tokenizer of at most 32,000 entries; the base
is random weights of Llama-2-7B's shape, made under OUT/models, as in gpu_train.py. Without ROWS, or
with - - for both, a tiny model is trained: that tries the script, on a CPU in float32. VARIANTS below
says what there is; the first four are run where none is named. Each is a process with a GPU of its own,
all at the same time; fewer GPUs take them in waves. Same base, rows, order, label mask, initial adapter,
optimizer, tokens a step and constant learning rate. The environment may say STEPS (200) and SECONDS
(400, for everything): a variant that is late reports the steps that it has. Needs no Prefect. Prints
one table; OUT/curve.json has every step.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_devices
import gpu_peers
import gpu_train
import gpu_turns

from tasks.processes import device

STEPS, SECONDS = int(os.environ.get("STEPS", "200")), float(os.environ.get("SECONDS", "400"))
GRACE = 15.0  # seconds from the last step to a process' end
WINDOW = 10
SHOWN = (1, 10, 25, 50, 100, 150, 200)
# name of a variant: who, training settings, TRL's attention, whether TRL's adapter is put into float32
VARIANTS: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "trl": ("trl", {}, "varlen", False),
    "trl-sdpa": ("trl", {}, "sdpa", False),
    "precis": ("precis", {}, "", False),
    "precis-nf4": ("precis", {"memory": "none"}, "", False),
    # TRL trains a 4-bit base's adapter in bf16, precis in float32: what that alone makes.
    "trl-float32": ("trl", {}, "varlen", True),
    "trl-again": ("trl", {}, "varlen", False),  # flash kernels add up in no fixed order
}
REFERENCE, USUAL = "trl", 4


def listen(trainer: Any, folder: Path, until: float) -> None:
    """Have each step written to steps.jsonl, the last adapter's norms to norms.json; stop in time."""
    import torch
    from transformers import TrainerCallback

    compute = trainer.compute_loss
    seen: list[Any] = [
        0
    ]  # the sum of all token ids so far: other rows, or another order, would show

    def counted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen[0] = seen[0] + inputs["input_ids"].sum()
        return compute(model, inputs, *args, **kwargs)

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
            gpu_turns.start_adapter(model)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:
                return
            values = {name: float(logs[name]) for name in ("loss", "grad_norm")}
            line = {"step": state.global_step, "seen": int(seen[0]), "at": time.time()} | values
            with (folder / "steps.jsonl").open("a") as lines:
                lines.write(json.dumps(line) + "\n")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= time.time() > until

        def on_train_end(self, *_: Any, model: Any = None, **__: Any) -> None:
            found = {}
            for part in ("lora_A", "lora_B"):
                held = [p.detach().float().norm() for n, p in model.named_parameters() if part in n]
                found[part] = float(torch.stack(held).norm())
            (folder / "norms.json").write_text(json.dumps(found))

    trainer.compute_loss = counted
    trainer.add_callback(Recorder())


def one(name: str, base: Path, out: Path, settings: dict[str, Any], until: float) -> None:
    """A variant, in a process of its own."""
    who, own, attention, wide = VARIANTS[name]
    training, folder = settings | own, out / name
    if who == "precis":
        rows = base.parent / "rows.jsonl"
        gpu_train.train_precis(base, training, rows, folder, lambda t: listen(t, folder, until))
        return
    attention = gpu_peers.varlen() if attention == "varlen" else attention
    trainer = gpu_peers.trl_trainer(base, training, attention, folder)
    for parameter in trainer.model.parameters():
        if wide and parameter.requires_grad:
            parameter.data = parameter.data.float()
    listen(trainer, folder, until)
    trainer.train()


def places() -> list[str]:
    """The GPUs, by what CUDA_VISIBLE_DEVICES calls them; on a CPU one place."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(device.count())))
    return named.split(",") if device.count() else [""]


def run(names: list[str], base: Path, out: Path, settings: dict[str, Any], until: float) -> None:
    """All variants, as many at a time as there are places; each wave gets its part of the time."""
    free = places()
    waves = [names[i : i + len(free)] for i in range(0, len(names), len(free))]
    for number, wave in enumerate(waves):
        now = time.time()
        end = now + (until - now) / (len(waves) - number)
        running = []
        for name, place in zip(wave, free, strict=False):
            (out / name).mkdir(parents=True)
            words = [name, str(base), str(out), json.dumps(settings), str(end - GRACE)]
            with (out / name / "log.txt").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [sys.executable, __file__, "--one", *words],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=os.environ | {"CUDA_VISIBLE_DEVICES": place},
                    )
                )
        for process in running:
            try:
                process.wait(max(0.0, end - time.time()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Curve:
    """What one variant left."""

    name: str
    steps: dict[int, dict[str, float]]
    norms: dict[str, float]

    @classmethod
    def read(cls, name: str, folder: Path) -> Curve:
        """From its folder; empty where it failed."""
        lines, norms = folder / "steps.jsonl", folder / "norms.json"
        found = [json.loads(x) for x in lines.read_text().splitlines()] if lines.exists() else []
        held = json.loads(norms.read_text()) if norms.exists() else {}
        return cls(name, {line["step"]: line for line in found}, held)

    def mean(self, step: int, key: str = "loss") -> float:
        """Over the window that ends with this step; of the first step alone."""
        first = step if step == 1 else max(1, step - WINDOW + 1)
        held = [self.steps[n][key] for n in range(first, step + 1) if n in self.steps]
        return statistics.fmean(held) if step in self.steps else float("nan")


def difference(one: Curve, other: Curve) -> str:
    """How far two curves are apart: step by step, and windows' means."""
    steps = sorted(one.steps.keys() & other.steps.keys())
    if not steps:
        return "no steps"
    shown = []
    measures: list[tuple[str, Callable[[Curve, int], float], list[int]]] = [
        ("a step", lambda c, n: c.steps[n]["loss"], steps),
        (f"means of {WINDOW}", Curve.mean, [n for n in steps if not n % WINDOW]),
    ]
    for title, value, at in measures:
        off = [abs(value(one, n) - value(other, n)) for n in at]
        if off:
            shown.append(f"{title} {statistics.fmean(off):.2e} (at most {max(off):.2e})")
    norms = [abs(one.steps[n]["grad_norm"] / other.steps[n]["grad_norm"] - 1) for n in steps]
    same = all(one.steps[n]["seen"] == other.steps[n]["seen"] for n in steps)
    return (
        f"{len(steps):4} steps: loss {'; '.join(shown)}; gradient norm {statistics.fmean(norms):.1e} "
        f"of it (at most {max(norms):.1e}); batches {'the same' if same else 'DIFFER'}"
    )


def table(curves: list[Curve], out: Path) -> list[str]:
    """All of it, as text."""
    heads = [n for n in SHOWN if n <= STEPS]
    lines = [f"{'loss':12} " + " ".join(f"{n:>9}" for n in heads) + f"  (means of {WINDOW})"]
    for curve in curves:
        lines.append(f"{curve.name:12} " + " ".join(f"{curve.mean(n):9.5f}" for n in heads))
        if not curve.norms:
            log = (out / curve.name / "log.txt").read_text(errors="replace")
            lines.append(f"  did not end by itself; its log ends: ...{log[-800:]}")
    reference = next((c for c in curves if c.name == REFERENCE and c.steps), curves[0])
    lines += [
        f"{c.name:12} against {reference.name}, {difference(c, reference)}"
        for c in curves
        if c is not reference
    ]
    for curve in (c for c in curves if c.steps):
        last, first = max(curve.steps), min(curve.steps)
        spent = curve.steps[last]["at"] - curve.steps[first]["at"]
        norms = " ".join(f"|{part}| {value:.4f}" for part, value in curve.norms.items())
        lines.append(
            f"{curve.name:12} after {last} steps: gradient norm {curve.steps[last]['grad_norm']:.4f} (mean "
            f"of the last {WINDOW}: {curve.mean(last, 'grad_norm'):.4f}) {norms}, "
            f"{spent / max(last - first, 1) * 1e3:.0f} ms a step"
        )
    for progress in sorted(out.glob("*/progress.jsonl")):
        told = [json.loads(line) for line in progress.read_text().splitlines()]
        lines += [f"{progress.parent.name:12} {x['text']}" for x in told if x["kind"] == "note"]
    return lines


def main(out: Path, *words: str) -> None:
    """Every variant, then the table."""
    until = time.time() + SECONDS
    out = out.absolute()
    named, chosen = words[:2] if words[:1] != ("-",) else (), words[2:]
    base, _, settings = gpu_devices.inputs(out, *named)
    settings = {"per_device_train_batch_size": 2, "lr_scheduler_type": "constant"} | settings
    settings |= {
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_steps": 10_000,
        "learning_rate": 2e-4,
    }
    shutil.rmtree(out / "curves", ignore_errors=True)
    names = list(chosen) or list(VARIANTS)[:USUAL]
    run(names, base, out / "curves", settings, until)
    curves = [Curve.read(name, out / "curves" / name) for name in names]
    kept = {c.name: {"steps": list(c.steps.values()), "norms": c.norms} for c in curves}
    (out / "curve.json").write_text(json.dumps(kept))
    lines = [f"{base.name}, {len(places())} at a time, {STEPS} steps wanted"]
    lines += table(curves, out / "curves")
    print("\n".join(lines), flush=True)
    (out / "table.txt").write_text("\n".join(lines))


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        name, base, out, settings, until = sys.argv[2:]
        one(name, Path(base), Path(out), json.loads(settings), float(until))
    else:
        main(Path(sys.argv[1]), *sys.argv[2:])
