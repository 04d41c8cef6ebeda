"""A run that was cancelled, then killed, ends with the weights of one that was not."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny

from tasks.contracts.errors import ChildFailed, TrainingError
from tasks.processes import step_process

# Dropout draws random numbers, and steps of two micro-batches cross epochs at odd places.
TRAINING = {
    "max_length": 128,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "save_steps": 5,
    "logging_steps": 1,
}


class Interrupter:
    """Sends a signal to the child that works in `folder`, once it reported a step; keeps reports."""

    def __init__(self, folder: Path, at: int, sig: signal.Signals) -> None:
        self.folder, self.at, self.sig = folder, at, sig
        self.lines: list[dict[str, Any]] = []

    def __call__(self, line: dict[str, Any]) -> None:
        if line["kind"] != "train":
            return
        self.lines.append(line)
        if line["step"] == self.at:
            self.before_signal()
            os.kill(child_of(self.folder), self.sig)

    def before_signal(self) -> None:
        """For what must happen while the child trains."""


class Intruder(Interrupter):
    """Tries to train in the same folder first."""

    def before_signal(self) -> None:
        with pytest.raises(TrainingError, match="is in use by another run"):
            step_process.run("tasks.train.qlora:train", {}, self.folder)


def child_of(folder: Path) -> int:
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (proc / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"tasks.processes.step_process" in arguments and str(folder).encode() in arguments:
            return int(proc.name)
    raise AssertionError(f"no child works in {folder}")


class RunsCode:
    """What makes a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.made),)


def refuses_a_pickle(interrupted: Path, name: str, folder: Path, train: Any) -> None:
    """With that file of a checkpoint a pickle that runs code, training ends with an error, and runs none."""
    shutil.copytree(interrupted, folder)
    for planted in (folder / "job" / "checkpoints").glob(f"*/{name}"):
        planted.write_bytes(pickle.dumps({"state": RunsCode(folder / "made")}))
    with pytest.raises(ChildFailed, match="weights_only"):
        train(folder, lambda line: None)
    assert not (folder / "made").exists()
    pickle.loads(planted.read_bytes())
    assert (folder / "made").exists()  # it would have


@pytest.mark.parametrize(
    ("kind", "quantization"),
    [("lora", "nf4"), pytest.param("dora", "fp4", marks=pytest.mark.long)],
)
def test_killed_and_resumed_is_bit_for_bit_uninterrupted(
    kind: str, quantization: str, tmp_path: Path
) -> None:
    """Cancelled, killed -9 with a half-written checkpoint left, then left alone: the same digest."""
    base = tiny.make_tiny_base(tmp_path / "base")
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.make_rows(30))
    recipe = tiny.make_recipe(
        base,
        base={"quantization": quantization},
        training=TRAINING,
        adapter={"kind": kind, "lora_dropout": 0.1},
    )

    def train(folder: Path, on_progress: Any, fresh: bool = False) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "rows": str(rows),
            "base": tiny.prepared(base, recipe).as_json(),
            "folder": str(folder / "job"),
        }
        payload |= {"recipe": recipe.model_dump(mode="json")}
        answer: dict[str, Any] = step_process.run(
            "tasks.train.qlora:train",
            payload,
            folder,
            on_progress=on_progress,
            threads=1,
            fresh=fresh,
        )
        return answer

    steady: list[dict[str, Any]] = []
    expected = train(tmp_path / "steady", steady.append, fresh=True)  # the others are forked
    total = steady[-1]["total_steps"]
    assert total >= 45

    folder = tmp_path / "disturbed"
    saved = folder / "job" / "checkpoints"
    with pytest.raises(TrainingError, match="cancelled at step"):
        train(folder, Intruder(folder, 8, signal.SIGTERM))
    last = max(int(path.name.split("-")[1]) for path in saved.iterdir())
    assert 8 <= last < total
    assert (saved / f"checkpoint-{last}" / "complete.json").exists()
    assert len(list(saved.iterdir())) <= 2

    if kind == "lora":
        for name in ("optimizer.pt", "rng_state.pth"):
            refuses_a_pickle(folder, name, tmp_path / name, train)

    second = Interrupter(folder, last + 8, signal.SIGKILL)
    with pytest.raises(ChildFailed, match="SIGKILL"):
        train(folder, second)
    assert second.lines[0]["step"] == last + 1
    (saved / "checkpoint-9999").mkdir()
    (saved / "checkpoint-9999" / "trainer_state.json").write_text("{")

    lines: list[dict[str, Any]] = []
    resumed = train(folder, lines.append)
    note, *third = lines
    assert note["text"] == f"training goes on from step {third[0]['step'] - 1}"
    assert third[0]["step"] > last + 1
    assert resumed["digest"] == expected["digest"]
    counted = ("steps", "tokens", "completion_tokens", "train_loss", "first_loss", "last_loss")
    assert [resumed["metrics"][n] for n in counted] == [expected["metrics"][n] for n in counted]
    losses = {line["step"]: line["loss"] for line in steady}
    assert all(line["loss"] == losses[line["step"]] for line in second.lines + third)
