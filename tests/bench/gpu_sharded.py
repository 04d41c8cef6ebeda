"""Base weights sharded over all GPUs of a machine against each holding them: speed, memory, losses.

    python tests/bench/gpu_sharded.py OUT [ROWS TOKENIZER [llama2-13b]]

ROWS is DialogSum's train.jsonl, TOKENIZER a folder with a tokenizer of at most 32,000 entries.
Llama-2-7B's shape both ways, in turns; or Llama-2-13B's, where another process leaves LEFT_GIB of
each GPU free: held whole it should be refused, and `training.base_weights: auto` should train it.
Without ROWS a tiny model is trained by two CPU processes: that tries the script, and measures
nothing. Everything goes through tasks.train.qlora.train in a child process, as in the flow. Prints
one table.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_devices

from tasks.processes import device

LEFT_GIB = 9.0
BIG = "llama2-13b"
WAYS = ("replicated", "sharded")
BALLOON = """
import sys, torch
held = []
for i in range(torch.cuda.device_count()):
    free = torch.cuda.mem_get_info(i)[0] - float(sys.argv[1]) * 2**30
    held.append(torch.empty(int(free), dtype=torch.uint8, device=f"cuda:{i}"))
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def crowded(left_gib: float) -> Iterator[None]:
    """Another process holds all of each GPU's memory but so much."""
    words = [sys.executable, "-c", BALLOON, str(left_gib)]
    balloon = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert balloon.stdout
        assert balloon.stdout.readline() == "held\n"
        yield
    finally:
        balloon.kill()
        balloon.wait()


def line(runs: list[gpu_devices.Run]) -> str:
    """The timed parts of one variant."""
    parts = [x for run in runs for x in run.parts()]
    if not parts:
        return f"{runs[0].name}: no figures: {runs[0].error[:700]}"
    found = runs[0].metrics
    shown = " ".join(f"{x:.0f}" for x in parts)
    return (
        f"{runs[0].name:22} {statistics.median(parts):8.0f} tok/s [{shown}]  peak GiB by rank "
        f"{runs[0].peaks()}, estimated {found.get('predicted_memory_gib', float('nan')):.2f}; "
        f"parts {found.get('weight_shards', 1):.0f}, last loss {found['last_loss']:.5f}"
    )


def both_ways(bench: gpu_devices.Bench, count: int, turns: int, **training: Any) -> list[str]:
    """Replicated and sharded, in turns, and whether they learned the same."""
    runs: dict[str, list[gpu_devices.Run]] = {way: [] for way in WAYS}
    name = "-".join(str(value) for value in training.values())
    for turn in range(turns):
        for way in WAYS:
            run = bench.run(f"{way}-{name}-{turn}", devices=count, base_weights=way, **training)
            runs[way].append(run)
    lines = [line(found) for found in runs.values()]
    whole, shared = (runs[way][0].steps() for way in WAYS)
    losses = [(whole[n]["loss"], shared[n]["loss"]) for n in whole if n in shared]
    return [*lines, f"  losses, of {gpu_devices.PART} steps each: {losses}"]


def crowded_out(bench: gpu_devices.Bench, count: int) -> list[str]:
    """A base that one GPU does not hold: refused whole, trained by `auto`."""
    with crowded(LEFT_GIB):
        small = {"per_device_train_batch_size": 1, "devices": count, "max_steps": 18}
        auto = bench.run("big-auto", **small)
        whole = bench.run("big-replicated", base_weights="replicated", **small)
    notes = [f"    {line['text']}" for line in auto.lines if line["kind"] == "note"]
    return [line([auto]), *notes, f"  held whole: {whole.error[:400] or line([whole])}"]


def main(out: Path, *named: str) -> None:
    """Every run, then the table."""
    started = time.monotonic()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(out.absolute() / "inductor"))
    count = device.count() or 2
    base, rows, settings = gpu_devices.inputs(out, *named)
    table = [f"{count} devices of kind {device.compute()}"]

    def tell(lines: list[str]) -> None:
        table.extend([*lines, f"  ({time.monotonic() - started:.0f} s)"])
        print("\n".join(table[-len(lines) - 1 :]), flush=True)

    bench = gpu_devices.Bench(out, base, rows, settings)
    if BIG not in named:
        tell(both_ways(bench, count, 2, memory="none"))
        tell(both_ways(bench, count, 1, memory="full"))
    else:
        tell(crowded_out(bench, count))
    print("== table\n" + "\n".join(table), flush=True)
    (out / "table.txt").write_text("\n".join(table))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
