"""Timing of training steps in turns: several processes on one GPU, one at work at a time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

WARM, PART, PARTS = 8, 6, 3  # steps before timing, steps a timed part, timed parts
PROFILED = 2  # steps after them, where PROFILE names the variant


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
