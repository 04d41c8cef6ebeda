"""The GPU's training path on a CPU, alone or as one of a team: run by test_train_devices."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import test_train_fast as single
import tiny
import torch

from tasks.costs.memory_plan import Plan
from tasks.train import collectives
from tasks.train.fast_path import setup


class FullOnce(setup.FastPath):
    """A GPU whose memory does not hold a step unless all layers are computed again."""

    def __call__(self, inputs: dict[str, Any], num_items: Any = None) -> torch.Tensor:
        if self.plan.recomputed < self.shape.layers:
            raise torch.cuda.OutOfMemoryError("of this test")
        return super().__call__(inputs, num_items)


def trained(folder: Path, accumulation: int) -> dict[str, Any]:
    """Five steps, which cross an epoch's odd end; losses and gradient norms."""
    base = tiny.make_tiny_base(folder / f"base-{collectives.rank()}", hidden=128, tied=False)
    more = {"max_steps": 5, "logging_steps": 1, "learning_rate": 1e-2, "max_length": 200}
    trainer, recipe = single.trainer_over(
        base,
        folder / str(collectives.rank()),
        training=more | {"gradient_accumulation_steps": accumulation},
    )
    assert single.enable(trainer, recipe, Plan())
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return {
        "steps": [(line["loss"], line["grad_norm"]) for line in lines],
        "tokens": trainer.meter.read()["tokens"],
        "recomputed": trainer.fast_path.plan.recomputed,
    }


def main(folder: Path) -> None:
    """As one of a team; the second one's memory is small."""
    collectives.init_process_group()
    if collectives.rank() == 1:
        setup.FastPath = FullOnce  # type: ignore[misc]
        single.compilation.compile_layers, compile_layers = (
            _patient,
            single.compilation.compile_layers,
        )
        _patient.inner = compile_layers  # type: ignore[attr-defined]
    found = trained(folder, accumulation=1)
    (folder / f"{collectives.rank()}.json").write_text(json.dumps(found))
    collectives.barrier()
    collectives.destroy_process_group()


def _patient(one: Any, *rest: Any) -> None:
    """Memory is short in the rehearsal only."""
    plan, one.plan = one.plan, Plan(recomputed=one.shape.layers)
    _patient.inner(one, *rest)  # type: ignore[attr-defined]
    one.plan = plan


if __name__ == "__main__":
    main(Path(sys.argv[1]))
