"""A merge against copying the same bytes, and PEFT's merge, side by side: one table.

    python tests/bench/merge_speed.py [--size small | 1b | 7b] [--repeats 3] [--peft-repeats 3]
                                      [--folder FOLDER] [--drift]

On a GPU host, Llama-2-7B's shape (13.5 GB twice in FOLDER, 30 GB in all), about four minutes:

    python tests/bench/merge_speed.py --size 7b --peft-repeats 1 --drift --folder /tmp/merge
    python tests/bench/merge_speed.py --size 7b --repeats 2 --peft-repeats 1 --folder /dev/shm/merge

Every variant is a process of its own, in turns; each ends with its files on the disk (fsync); times
are of the work, without the interpreter's start and its imports. Files are read from the page cache.
`memory`: the most that a process held in RAM at once, mapped files included, over what it held
when its imports were done. `rounded` is the default recipe: NF4 and the adapter in float32. PEFT adds the
adapter to the original weights in bf16: compare it with `original`, the same sum in float32.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

Work = Callable[[], Any]


def copy(place: Path, out: Path) -> Work:
    """The base's files, as `cp` copies them."""

    def work() -> None:
        out.mkdir()
        for file in (place / "base").iterdir():
            shutil.copyfile(file, out / file.name)
        settle(out)

    return work


def precis(place: Path, out: Path, onto: str) -> Work:
    """The flow's merge."""
    import bulk_models

    from tasks.merge import merge
    from tasks.models import find_base
    from tasks.models.prepared_base import BaseFolder

    warm()
    chosen = bulk_models.recipe(place / "base", merge={"onto": onto})
    base = find_base.prepare(chosen, BaseFolder.read(place / "base"))
    return lambda: merge.merge(base, place / "adapter", chosen, out)


def peft(place: Path, out: Path) -> Work:
    """As PEFT's documentation has it: load, merge, save; then fsync."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tasks.models import loading

    warm()

    def work() -> None:
        base = AutoModelForCausalLM.from_pretrained(
            place / "base", dtype="bfloat16", device_map={"": loading.device()}
        )
        model = PeftModel.from_pretrained(base, place / "adapter").merge_and_unload()
        model.save_pretrained(out, max_shard_size="5GB")
        settle(out)

    return work


def warm() -> None:
    """Import what transformers only imports when a model is asked for: for both, before the clock."""
    for name in ("integrations.bitsandbytes", "models.llama.modeling_llama", "pytorch_utils"):
        importlib.import_module(f"transformers.{name}")


WAYS: dict[str, Callable[[Path, Path], Work]] = {
    "copy": copy,
    "precis, rounded": lambda place, out: precis(place, out, "quantized_base"),
    "precis, original": lambda place, out: precis(place, out, "original_base"),
    "PEFT": peft,
}


def settle(folder: Path) -> None:
    """Wait until a folder's files are on the disk."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def held(what: str) -> float:
    """A figure of /proc/self/status, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1e6


def once(way: str, place: Path, out: Path) -> None:
    """One variant in this process; prints its seconds and GB of memory."""
    work = WAYS[way](place, out)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before, begun = held("VmRSS"), time.perf_counter()
    work()
    taken = time.perf_counter() - begun
    print(json.dumps([taken, held("VmHWM") - before]))


def timed(way: str, place: Path) -> tuple[float, float]:
    """Seconds and GB of one variant, in a process of its own."""
    out = place / "out"
    words = [sys.executable, __file__, "--once", way, "--folder", str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(out)
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory


def drift(place: Path) -> None:
    """What the drift check takes after a merge; a part of the step, not of the merge."""
    import bulk_models
    import tiny

    from tasks.merge import drift, merge
    from tasks.models import find_base
    from tasks.models.prepared_base import BaseFolder

    chosen = bulk_models.recipe(place / "base")
    base = find_base.prepare(chosen, BaseFolder.read(place / "base"))
    adapter, out = place / "adapter", place / "out"
    rows = tiny.write_rows(place / "rows.jsonl", tiny.make_rows(chosen.merge.drift_rows))
    merge.merge(base, adapter, chosen, out)
    begun = time.perf_counter()
    found = drift.measure(base, adapter, out, rows, chosen)
    print(
        f"drift check, apart: {time.perf_counter() - begun:.1f} s, KL {found.kl:.1e} nats a token"
    )
    shutil.rmtree(out)


def prepare(place: Path, size: str) -> None:
    """A base and an adapter of this size in `place`, if they are not there."""
    import bulk_models

    from tasks.models import loading

    if not (place / "adapter/adapter_config.json").is_file():
        base = bulk_models.make_base(place / "base", size)
        dtype = str(loading.compute_dtype()).removeprefix("torch.")
        bulk_models.make_adapter(place / "adapter", base, size, dtype)
        settle(base)


def main(place: Path, size: str, repeats: int, peft_repeats: int, with_drift: bool) -> None:
    """Prepare, take turns, print the table."""
    import torch

    prepare(place, size)
    moved = sum(file.stat().st_size for file in (place / "base").iterdir()) / 1e9
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for turn in range(repeats):
        for way in WAYS:
            if way != "PEFT" or turn < peft_repeats:
                found[way].append(timed(way, place))
                print(f"turn {turn + 1}, {way}: {found[way][-1][0]:.1f} s", flush=True)
    shards = len(list((place / "base").glob("*.safetensors")))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        f"{size}: {moved:.2f} GB in {shards} shards on {place}; {os.cpu_count()} cores, "
        f"{platform.machine()}, {gpu}, torch {torch.__version__}; medians"
    )
    print(f"{'':18} {'seconds':>8} {'x copy':>7} {'GB/s':>6} {'memory, GB':>11}   all seconds")
    copied = statistics.median(seconds for seconds, _ in found["copy"])
    for way, values in found.items():
        if values:
            seconds = statistics.median(s for s, _ in values)
            memory = max(m for _, m in values)
            each = " ".join(f"{s:.1f}" for s, _ in values)
            print(
                f"{way:18} {seconds:8.2f} {seconds / copied:7.2f} {moved / seconds:6.2f} "
                f"{memory:11.2f}   {each}"
            )
    if with_drift:
        drift(place)


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--size", choices=("small", "1b", "7b"), default="small")
    words.add_argument("--repeats", type=int, default=3)
    words.add_argument("--peft-repeats", type=int, default=3)
    words.add_argument("--folder", type=Path)
    words.add_argument("--drift", action="store_true")
    words.add_argument("--once", choices=WAYS, help=argparse.SUPPRESS)
    options = words.parse_args()
    if options.once:
        once(options.once, options.folder, options.folder / "out")
        sys.exit()
    with tempfile.TemporaryDirectory() as scratch:
        main(
            options.folder or Path(scratch),
            options.size,
            options.repeats,
            options.peft_repeats,
            options.drift,
        )
