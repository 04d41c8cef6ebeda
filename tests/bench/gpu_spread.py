"""A merged model that one GPU does not hold: drift check, evaluation and losses, spread over all GPUs.

    python tests/bench/gpu_spread.py OUT [ROWS TOKENIZER]

ROWS is DialogSum's dev.jsonl, TOKENIZER a folder with a tokenizer of at most 32,000 entries. A model
of Llama-2-7B's shape (random weights and adapter) is merged, compared with its adapter and evaluated
on ROW_COUNT rows, first with all of each GPU's memory, then with a share of LEFT_GIB of it. Without ROWS
a small model takes both turns alike, on a CPU: that tries the script. Prints a line a turn (seconds,
memory a GPU, drift, losses) and how many summaries are the same; fails where a turn does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bulk_models
import gpu_train
import tiny

LEFT_GIB, ROW_COUNT = 9.0, 48


def judge(out: Path, turn: str, size: str) -> dict[str, Any]:
    """Drift and evaluation in this process."""
    import torch

    from tasks.evaluate.predict import predict
    from tasks.merge import drift
    from tasks.models import find_base

    if turn == "crowded":
        for at in range(torch.cuda.device_count()):
            total = torch.cuda.get_device_properties(at).total_memory
            torch.cuda.set_per_process_memory_fraction(LEFT_GIB * 2**30 / total, at)
    recipe = bulk_models.recipe(out / "base", merge={"drift_rows": 4, "drift_tokens": 1})
    begun = time.monotonic()
    found = drift.measure(
        find_base.find_base(recipe),
        out / "adapter",
        out / "package",
        out / "rows.jsonl",
        recipe,
    )
    drifted = time.monotonic() - begun
    table = out / f"{turn}.json"
    answer = predict(str(out / "package"), str(out / "rows.jsonl"), str(table), loss=True)
    peaks = [torch.cuda.max_memory_allocated(i) / 2**30 for i in range(torch.cuda.device_count())]
    return {
        "drift s": drifted,
        "kl": found.kl,
        "top1": found.top1_agreement,
        "tokens": answer["output_tokens"],
        "write s": answer["seconds"],
        "means": answer["means"],
        "decoding": answer["decoding"],
        "peaks": peaks,
    }


def prepare(out: Path, size: str, *named: str) -> None:
    """Base, adapter, rows and the merged package."""
    from tasks.contracts.records import Row
    from tasks.merge import merge
    from tasks.models import find_base, loading

    out.mkdir(parents=True, exist_ok=True)
    if named:
        words = [gpu_train.__file__, "--make", "llama2-7b", str(out / "base"), named[1]]
        subprocess.run([sys.executable, *words], check=True)
        lines = [json.loads(line) for line in Path(named[0]).read_text().splitlines()[:ROW_COUNT]]
        rows = [Row(r["fname"], r["fname"], r["dialogue"], (r["summary"],)) for r in lines]
    else:
        bulk_models.make_base(out / "base", size)
        rows = tiny.make_rows(6)
    tiny.write_rows(out / "rows.jsonl", rows)
    dtype = str(loading.compute_dtype()).removeprefix("torch.")
    bulk_models.make_adapter(out / "adapter", out / "base", size, dtype)
    recipe = bulk_models.recipe(
        out / "base", evaluation={"decoding": "generate", "max_new_tokens": 48, "batch_size": 16}
    )
    merge.merge(find_base.find_base(recipe), out / "adapter", recipe, out / "package")


def main(out: Path, *named: str) -> None:
    """Both turns, then what they wrote side by side."""
    from tasks.tracking.predictions_table import read_table

    size = "7b" if named else "small"
    prepare(out, size, *named)
    for turn in ("alone", "crowded"):
        words = [sys.executable, __file__, "--one", str(out), turn, size]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{turn} failed:\n{done.stderr[-3000:]}")
        print(turn, done.stdout.splitlines()[-1], flush=True)
    pairs = zip(*(read_table(out / f"{turn}.json") for turn in ("alone", "crowded")), strict=True)
    same = [one.text == other.text for one, other in pairs]
    print(f"{sum(same)} of {len(same)} summaries are the same")


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(judge(Path(sys.argv[2]), *sys.argv[3:])))
    else:
        main(Path(sys.argv[1]), *sys.argv[2:])
