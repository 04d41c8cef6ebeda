"""One GPU against all GPUs of this machine: tokens a second, memory, the same losses, a killed rank.

    python tests/bench/gpu_devices.py OUT [ROWS TOKENIZER [SHAPE]]

ROWS is DialogSum's train.jsonl, TOKENIZER a folder with a tokenizer of at most 32,000 entries, SHAPE one
of gpu_train.py's (llama2-7b); the model is random weights of that shape, made under OUT/models. Without
ROWS a tiny model is trained, on two CPU processes where there is no GPU: that tries the script, and
measures nothing. Everything goes through tasks.train.qlora.train in a child process, as in the flow.
Needs no Prefect. Prints one table; each run's log lies under OUT/RUN.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tasks.contracts.errors import PrecisError
from tasks.contracts.recipe import Recipe
from tasks.models import find_base
from tasks.processes import device, step_process

PART, PARTS, WARM = 6, 4, 2  # steps a timed part, timed parts, parts before them
STEPS = PART * (WARM + PARTS)
SAME_STEPS = 2 * PART  # on which one GPU does what all do
SECONDS = 530  # for all; a second turn of the timed runs is begun if it ends by then
KILL_AT = 3 * PART


@dataclass
class Run:
    """What one training left."""

    name: str
    folder: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0

    def steps(self) -> dict[int, dict[str, Any]]:
        return {line["step"]: line for line in self.lines if line["kind"] == "train"}

    def parts(self) -> list[float]:
        """Tokens a second of the timed parts."""
        return [s["tokens_per_second"] for n, s in self.steps().items() if n > WARM * PART]

    def peaks(self) -> str:
        """Peak memory of each rank, GiB."""
        logs = sorted(self.folder.glob("job/ranks/*/*/attempt_0/*/stderr.log"))
        peak_lines = [
            line for log in logs for line in log.read_text().splitlines() if "peak memory" in line
        ]
        found = [line.rpartition("peak memory ")[2].removesuffix(" GiB") for line in peak_lines]
        return " ".join(found) or f"{self.metrics.get('peak_memory_gib', float('nan')):.2f}"


class Bench:
    """The runs, all over one base and the same rows."""

    def __init__(self, out: Path, base: Path, rows: Path, settings: dict[str, Any]) -> None:
        self.out, self.base, self.rows, self.settings = out, base, rows, settings

    def run(self, name: str, act: Callable[[Run, int], None] | None = None, **training: Any) -> Run:
        """Train in OUT/`name`; what is there already goes on."""
        run, started = Run(name, self.out / name), time.monotonic()
        recipe = Recipe.model_validate(
            {
                "name": "bench",
                "data": {"train": "-"},
                "base": {"model": str(self.base)},
                "evaluation": {"max_new_tokens": 32},
                "training": {
                    "max_steps": STEPS,
                    "logging_steps": PART,
                    "save_steps": 10_000,
                    "lr_scheduler_type": "constant",
                }
                | self.settings
                | training,
            }
        )

        def heard(line: dict[str, Any]) -> None:
            run.lines.append(line)
            if act and line["kind"] == "train":
                act(run, line["step"])

        payload = {
            "rows": str(self.rows),
            "base": find_base.find_base(recipe).as_json(),
            "folder": str(run.folder / "job"),
        }
        payload |= {"recipe": recipe.model_dump(mode="json")}
        try:
            answer = step_process.run(
                "tasks.train.qlora:train", payload, run.folder, on_progress=heard
            )
            run.metrics = answer["metrics"]
        except PrecisError as error:
            run.error = f"{type(error).__name__}: {error}"
        run.seconds = time.monotonic() - started
        state = run.error[:1500] or f"loss {run.metrics['last_loss']:.4f}"
        print(f"-- {name}: {run.seconds:.0f} s, {state}", flush=True)
        for line in run.lines:
            if line["kind"] == "note":
                print(f"   {line['text']}", flush=True)
        return run


def ranks_of(folder: Path) -> dict[int, psutil.Process]:
    """The rank processes at work in a run's folder."""
    found = {}
    for process in psutil.process_iter():
        try:
            if "tasks.train.rank" in process.cmdline() and str(folder) in " ".join(
                process.cmdline()
            ):
                found[int(process.environ()["RANK"])] = process
        except psutil.Error:
            continue
    return found


class Killer:
    """Kills rank 1 at a step; says how long the others lived."""

    def __init__(self) -> None:
        self.killed = 0.0

    def __call__(self, run: Run, step: int) -> None:
        if step >= KILL_AT and not self.killed:
            self.killed = time.monotonic()
            ranks_of(run.folder)[1].kill()


def speed(one: list[Run], many: list[Run], count: int) -> list[str]:
    """The timed parts, and what one GPU is exceeded by."""
    lines, medians = [], []
    for title, runs in ((1, one), (count, many)):
        parts = [x for run in runs for x in run.parts()]
        if not parts:
            return [f"devices {title}: no figures: {runs[0].error[:800]}"]
        medians.append(statistics.median(parts))
        shown = " ".join(f"{x:.0f}" for x in parts)
        peaks = " / ".join(run.peaks() for run in runs)
        lines.append(
            f"devices {title}: {medians[-1]:8.0f} tok/s [{shown}]  peak GiB by rank: {peaks}"
        )
    return [*lines, f"ratio: {medians[1] / medians[0]:.3f} on {count} devices"]


def same(one: Run, many: Run, count: int) -> list[str]:
    """Losses and gradient norms of the same global batch."""
    lines = [f"losses (mean of {PART} steps): 1 device, accumulation {count} | {count} devices"]
    theirs = many.steps()
    for step, line in one.steps().items():
        other = theirs.get(step, {})
        values = [line["loss"], other.get("loss", float("nan"))]
        norms = [line["grad_norm"], other.get("grad_norm", float("nan"))]
        off = abs(values[1] - values[0]) / values[0]
        lines.append(
            f"  step {step:3}: {values[0]:.5f} | {values[1]:.5f} ({off:.1e})  gradient norm "
            f"{norms[0]:.4f} | {norms[1]:.4f}"
        )
    return lines


def killed(first: Run, second: Run, whole: Run, ended: float) -> list[str]:
    """How a killed rank ended, and whether the retry came to the same."""
    went_on = [line["text"] for line in second.lines if line["kind"] == "note"]
    last = [run.steps().get(STEPS, {}).get("loss", float("nan")) for run in (second, whole)]
    return [
        f"rank 1 killed at step {KILL_AT}: all ended {ended:.1f} s later, left: "
        f"{len(ranks_of(first.folder))}; {first.error.splitlines()[0] if first.error else 'NO ERROR'}",
        f"retry: {next((t for t in went_on if 'goes on from' in t), 'DID NOT GO ON')}; last loss "
        f"{last[0]:.5f}, of the run left alone {last[1]:.5f}",
    ]


def inputs(out: Path, *named: str) -> tuple[Path, Path, dict[str, Any]]:
    """Base, rows and training settings; made where they are not there."""
    models = out / "models"
    models.mkdir(parents=True, exist_ok=True)
    if not named:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        import tiny

        rows = tiny.write_rows(out / "rows.jsonl", tiny.make_rows(120))
        return tiny.make_tiny_base(out / "tiny"), rows, {"max_length": 256}
    sys.path.insert(0, str(Path(__file__).parent))
    import gpu_shapes
    import gpu_train

    source, tokenizer, shape = named[0], named[1], (*named, "llama2-7b")[2]
    gpu_shapes.make_rows(Path(source), models)
    if not (models / shape / "config.json").exists():
        words = [gpu_train.__file__, "--make", shape, str(models / shape), tokenizer]
        subprocess.run([sys.executable, *words], check=True)
    return models / shape, models / "rows.jsonl", dict(gpu_shapes.PACKED)


def main(out: Path, *named: str) -> None:
    """Every run, then the table."""
    started = time.monotonic()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(out.absolute() / "inductor"))
    count = device.count() or 2
    base, rows, settings = inputs(out, *named)
    bench = Bench(out, base, rows, settings)
    table = [f"{count} devices of kind {device.compute()}, base {base.name}"]

    def tell(lines: list[str]) -> None:
        table.extend(lines)
        print("\n".join(lines), flush=True)

    one, many = [bench.run("one-0")], [bench.run("all-0", devices=count)]
    tell(speed(one, many, count))
    alone = bench.run("same", gradient_accumulation_steps=count, max_steps=SAME_STEPS)
    tell(same(alone, many[0], count))
    killer = Killer()
    first = bench.run("killed", killer, devices=count, save_steps=PART)
    ended = time.monotonic() - killer.killed
    retry = bench.run("killed", devices=count, save_steps=PART)
    tell(killed(first, retry, many[0], ended))
    # Both again, with what was compiled before.
    if time.monotonic() - started + one[0].seconds + many[0].seconds < SECONDS:
        one.append(bench.run("one-1"))
        many.append(bench.run("all-1", devices=count))
        tell(speed(one, many, count))
    tell([f"whole script: {time.monotonic() - started:.0f} s"])
    print("== table\n" + "\n".join(table), flush=True)
    (out / "table.txt").write_text("\n".join(table))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
