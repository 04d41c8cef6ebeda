"""A run killed on one machine goes on on another, and ends with the weights of one left alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
from store_sites import KINDS, Site, site

from tasks.contracts.errors import ChildFailed
from tasks.processes import step_process
from tasks.train import task as training
from tasks.train.checkpoints.backends import backend_of
from tasks.train.checkpoints.store import remove_job

# Dropout draws random numbers: they too must go on where they stopped.
TRAINING = {
    "max_length": 128,
    "max_steps": 45,
    "per_device_train_batch_size": 1,
    "learning_rate": 1e-3,
    "save_steps": 10,
    "logging_steps": 1,
}


class Machine:
    """A job folder of its own; trains there, does something at a step, and keeps what is reported."""

    def __init__(self, tmp_path: Path, name: str) -> None:
        self.folder = tmp_path / name
        self.rows, self.base = tmp_path / "rows.jsonl", tmp_path / "base"
        self.lines: list[dict[str, Any]] = []

    def train(
        self, store: str | None, at: int = 0, act: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        def listen(line: dict[str, Any]) -> None:
            self.lines.append(line)
            if line.get("step") == at and act:
                act()

        parts = TRAINING | {"checkpoint_store": store}
        recipe = tiny.make_recipe(self.base, training=parts, adapter={"lora_dropout": 0.1})
        prepared = tiny.prepared(self.base, recipe).as_json()
        payload: dict[str, Any] = {"rows": str(self.rows), "base": prepared}
        payload |= {"recipe": recipe.model_dump(mode="json"), "folder": str(self.folder / "job")}
        answer: dict[str, Any] = step_process.run(
            "tasks.train.qlora:train", payload, self.folder, on_progress=listen, threads=1
        )
        return answer

    def kill(self) -> None:
        """What a power cut does to the trainer."""
        (found,) = (
            process.pid
            for process in psutil.Process().children(recursive=True)  # through the fork server
            if str(self.folder) in " ".join(process.cmdline())
        )
        os.kill(found, signal.SIGKILL)

    def steps(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in self.lines if line["kind"] == "train"}

    def notes(self) -> list[str]:
        return [line["text"] for line in self.lines if line["kind"] == "note"]


@pytest.mark.full  # 48 s of CPU; `make test` has the same without a store: test_train_resume.py
@pytest.mark.parametrize("kind", KINDS)
def test_killed_here_and_resumed_there_is_bit_for_bit_uninterrupted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second machine trains no step again that a stored checkpoint has, to the same digest.

    The uninterrupted run loses its own store halfway, and goes on.
    """
    tiny.make_tiny_base(tmp_path / "base")
    tiny.write_rows(tmp_path / "rows.jsonl", tiny.make_rows(40))
    steady, first, second = (Machine(tmp_path, name) for name in ("steady", "first", "second"))
    with site(kind, tmp_path / "lost", monkeypatch) as lost:
        expected = steady.train(lost.uri, 15, lost.vanish)
    stored, *failed = steady.notes()
    assert stored.startswith("checkpoint 10 stored at ")
    assert failed
    assert all("is not stored: training.checkpoint_store: " in text for text in failed)

    with site(kind, tmp_path / "kept", monkeypatch) as kept:
        with pytest.raises(ChildFailed, match="SIGKILL"):
            first.train(kept.uri, 24, first.kill)
        resumed = second.train(kept.uri)
        job = _left(kept)
        assert second.notes()[0].startswith(
            f"training goes on from checkpoint {min(second.steps()) - 1}"
        )
        assert min(second.steps()) > 20
        assert resumed["job"] == job == expected["job"]  # another store, the same job
        remove_job(kept.uri, job)
        assert backend_of(kept.uri).names("") == []
    assert resumed["digest"] == expected["digest"]
    counted = ("steps", "tokens", "completion_tokens", "train_loss", "first_loss", "last_loss")
    assert [resumed["metrics"][n] for n in counted] == [expected["metrics"][n] for n in counted]
    losses = steady.steps()
    assert all(loss == losses[step] for step, loss in (first.steps() | second.steps()).items())


def _left(kept: Site) -> str:
    """The one job of a store, which still holds its last checkpoints: the adapter is not logged yet."""
    names = [name.split("/") for name in backend_of(kept.uri).names("")]
    assert {"checkpoint-40", "checkpoint-45"} <= {parts[1] for parts in names}
    (job,) = {parts[0] for parts in names}
    return job


def test_what_precis_check_says_of_the_store(tmp_path: Path) -> None:
    """No store, nothing to say; one that answers; one that would stop the run."""

    def asked(store: str | None) -> tuple[list[str], list[str]]:
        recipe = tiny.make_recipe(tmp_path, training={"checkpoint_store": store})
        return training.preflight(recipe)

    assert asked(None) == ([], [])
    assert asked(str(tmp_path)) == ([f"checkpoint store: {tmp_path} answers"], [])
    found, (problem,) = asked(str(tmp_path / "absent"))
    assert not found
    assert problem.startswith(f"training.checkpoint_store: {tmp_path}/absent: ")
