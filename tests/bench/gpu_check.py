"""Train, merge and evaluate on a CUDA device, in bf16 and fp16: one table, to be read by a person.

    python tests/bench/gpu_check.py OUT [MODEL ROWS]

The demo's base and data come with the repository. MODEL and ROWS (canonical rows) add a base of
another size, of which a few steps are trained and merged. Needs no Prefect and no MLflow server.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tasks.contracts.recipe import Recipe
from tasks.contracts.records import Row, to_json
from tasks.evaluate.predict import predict
from tasks.merge.merge import merge_and_check
from tasks.models import find_base, package
from tasks.train.qlora import train

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "deployments/demo"


def demo_rows(name: str, folder: Path, most: int) -> Path:
    """The demo's rows in canonical form."""
    path = folder / f"{name}.jsonl"
    lines = (DEMO / f"data/{name}.jsonl").read_text().splitlines()[:most]
    found = [json.loads(line) for line in lines]
    rows = [Row(r["id"], r["id"], r["dialogue"], (r["summary"],)) for r in found]
    path.write_text("".join(to_json(row) + "\n" for row in rows))
    return path


def recipe(model: Path, **parts: Any) -> Recipe:
    """A recipe over a base in folder `model`."""
    values = {"name": "gpu", "data": {"train": "-"}, "base": {"model": str(model)}}
    return Recipe.model_validate(values | {k: values.get(k, {}) | v for k, v in parts.items()})


def trained(name: str, rows: Path, chosen: Recipe, out: Path) -> tuple[Path, str]:
    """Train and merge; returns the package and a line of figures."""
    values, base = chosen.model_dump(mode="json"), find_base.find_base(chosen).as_json()
    made = train(str(rows), base, values, str(out / "train"))
    started = time.monotonic()
    merged = merge_and_check(base, made["adapter"], str(rows), values, str(out / "package"))
    m, drift = made["metrics"], merged["drift"]
    line = (
        f"{name:16} {m['tokens_per_second']:8.0f} tok/s  {m['seconds_per_step']:.3f} s/step  "
        f"peak {m['peak_memory_gib']:.2f} GiB  loss {m['first_loss']:.2f} -> {m['last_loss']:.2f}  "
        f"merge {time.monotonic() - started:.1f} s  KL {drift['kl']:.1e}  "
        f"top-1 {drift['top1_agreement']:.4f}"
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return Path(merged["path"]), line


def main(out: Path, *other: str) -> None:
    """Run every variant and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    rows, held_out = demo_rows("train", out, 720), demo_rows("evaluation", out, 100)
    lines = []
    for name, kind, quantization, bf16 in (
        ("nf4 bf16", "lora", "nf4", True),
        ("nf4 fp16", "lora", "nf4", False),
        ("lora bf16", "lora", "none", True),
        ("dora nf4 bf16", "dora", "nf4", True),
        ("dora fp4 fp16", "dora", "fp4", False),
        ("dora int8 bf16", "dora", "int8", True),
        ("rslora int8 bf16", "rslora", "int8", True),
    ):
        chosen = recipe(
            DEMO / "base",
            base={"quantization": quantization},
            training={"learning_rate": 2e-3, "per_device_train_batch_size": 1},
            adapter={"kind": kind, "r": 32, "lora_alpha": 64},
            evaluation={"max_new_tokens": 88, "batch_size": 50},
        )
        with mock.patch("torch.cuda.is_bf16_supported", return_value=bf16):
            made, line = trained(name, rows, chosen, out / name.replace(" ", "-"))
            first = predict(str(made), str(held_out), str(out / "a.json"))
            predict(str(made), str(held_out), str(out / "b.json"))
        replay = (out / "a.json").read_bytes() == (out / "b.json").read_bytes()
        lines.append(
            f"{line}  rougeL {first['means']['rougeL']:.4f} ({first['dtype']})  replay equal: {replay}"
        )
    prepared = find_base.find_base(chosen)
    base = package.package_base(prepared, prepared.settings, out / "base")
    untuned = predict(base.path, str(held_out), str(out / "c.json"))["means"]["rougeL"]
    lines.append(f"base           rougeL {untuned:.4f}")
    if other:
        model, its_rows = map(Path, other)
        # Random weights give near-equal logits, whose order rounding decides: no top-1 to agree on.
        chosen = recipe(
            model,
            training={"max_steps": 8, "logging_steps": 1, "gradient_checkpointing": True},
            merge={"min_top1_agreement": 0.0},
        )
        lines.append(trained(model.name, its_rows, chosen, out / "other")[1])
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
