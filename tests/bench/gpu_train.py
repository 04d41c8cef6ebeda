"""Training on one GPU, precis beside its peers: tokens a second, peak memory, first loss.

    python tests/bench/gpu_train.py OUT ROWS TOKENIZER GROUP[=VARIANT,VARIANT] ...

ROWS is DialogSum's train.jsonl, TOKENIZER a folder with a tokenizer of at most 32,000 entries; the
models are random weights of a known model's shape, made under OUT/models. Each variant is a process
of its own. Those of one group are loaded together and take turns, so that their timed parts are
interleaved; a variant that fails prints its traceback and the others go on. GROUPS in gpu_shapes.py says what
there is; `check` compares gradients with plain PEFT's. PROFILE names a variant of precis whose steps
are profiled. Needs no Prefect; trl, and for variants of unsloth's its packages in a folder of their own,
UNSLOTH_SITE: they want another trl.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_peers import quantization, trl, unsloth
from gpu_shapes import GROUPS, VARIANTS, make_model, make_rows
from gpu_turns import Turns, segments, steps


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


def main(out: Path, source: Path, tokenizer: Path, *wanted: str) -> None:
    """Make models and rows, run the groups, print the table."""
    models = out / "models"
    models.mkdir(parents=True, exist_ok=True)
    make_rows(source, models)
    table = []
    for group in wanted:
        if group == "check":
            subprocess.run(
                [sys.executable, Path(__file__).with_name("gpu_gradients.py"), out / "check"],
                check=False,
            )
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
    elif sys.argv[1] == "--one":
        one(sys.argv[2], sys.argv[3].split(","), Path(sys.argv[4]))
    else:
        main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
