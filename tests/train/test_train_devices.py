"""Two processes that train together do what one does with twice the accumulation; killed, cancelled,
or orphaned, they end together. Real processes over gloo, in float32, through the real entry.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
import torch
import two
from safetensors.torch import load_file

from tasks.contracts.errors import ChildFailed, TrainingError
from tasks.processes import step_process

pytestmark = pytest.mark.full

# An epoch is no whole number of rounds, and steps cross epochs at odd places.
TRAINING = {
    "max_length": 128,
    "max_steps": 120,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "save_steps": 10,
    "logging_steps": 1,
}


class Job:
    """A folder, and what was reported from it."""

    def __init__(self, inputs: Path, folder: Path, **training: Any) -> None:
        self.folder, self.lines = folder, list[dict[str, Any]]()
        self.at: tuple[int, Callable[[], object]] | None = None
        recipe = tiny.make_recipe(inputs / "base", training=TRAINING | training)
        self.payload = {
            "rows": str(inputs / "rows.jsonl"),
            "base": tiny.prepared(inputs / "base", recipe).as_json(),
            "recipe": recipe.model_dump(mode="json"),
            "folder": str(folder / "job"),
        }

    def train(self) -> dict[str, Any]:
        answer: dict[str, Any] = step_process.run(
            "tasks.train.qlora:train", self.payload, self.folder, on_progress=self.heard, threads=1
        )
        return answer

    def heard(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.at and line.get("step", 0) >= self.at[0]:
            act, self.at = self.at[1], None
            act()

    def ranks(self) -> list[psutil.Process]:
        return [p for p in psutil.process_iter() if _is_rank(p, self.folder)]

    def checkpoints(self) -> list[int]:
        found = (self.folder / "job" / "checkpoints").glob("checkpoint-*/complete.json")
        return sorted(int(path.parent.name.rpartition("-")[2]) for path in found)

    def steps(self) -> dict[int, dict[str, Any]]:
        return {line["step"]: line for line in self.lines if line["kind"] == "train"}


def _is_rank(process: psutil.Process, folder: Path) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "tasks.train.rank" in words and any(str(folder) in word for word in words)


def numbered(ranks: list[psutil.Process], rank: int) -> psutil.Process:
    return next(p for p in ranks if p.environ()["RANK"] == str(rank))


def wait_for(what: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.make_tiny_base(folder / "base")
    tiny.write_rows(folder / "rows.jsonl", tiny.make_rows(21))
    return folder


@pytest.fixture(scope="module")
def together(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, dict[str, Any]]:
    """Two processes, left alone."""
    job = Job(inputs, tmp_path_factory.mktemp("two"), devices=2)
    return job, job.train()


def adapter(answer: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(Path(answer["adapter"]) / "adapter_model.safetensors")


def test_losses_and_weights_are_those_of_one_process_on_the_same_batches(
    inputs: Path, together: tuple[Job, dict[str, Any]], tmp_path: Path
) -> None:
    """Every step's loss and gradient norm, the tokens, and the adapter: within float32's rounding."""
    alone = Job(inputs, tmp_path, gradient_accumulation_steps=2)
    expected, (job, found) = alone.train(), together
    ours, theirs = job.steps(), alone.steps()
    assert ours.keys() == theirs.keys()
    assert len(ours) == 120
    # Gradients are summed in another order, and 120 steps of Adam carry the difference on: bounds a
    # thousand times float32's rounding, and far below what a lost or repeated row would change.
    for step, line in theirs.items():
        assert ours[step]["loss"] == pytest.approx(line["loss"], rel=1e-4), step
        assert ours[step]["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-3), step
        assert ours[step]["learning_rate"] == line["learning_rate"]
    counted = ("tokens", "completion_tokens", "steps", "rows")
    assert [found["metrics"][n] for n in counted] == [expected["metrics"][n] for n in counted]
    weights = adapter(expected)
    for name, value in adapter(found).items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-4)
    assert json.loads((job.folder / "job" / "finished.json").read_text()) == found


def test_a_sharded_base_trains_the_very_same_adapter_though_a_rank_is_killed(
    inputs: Path, together: tuple[Job, dict[str, Any]], tmp_path: Path
) -> None:
    """Each holds half of the weights: when one dies both end, the retry resumes, and no bit differs."""
    job = Job(inputs, tmp_path, devices=2, base_weights="sharded")
    job.at = (15, lambda: numbered(job.ranks(), 1).kill())
    with pytest.raises(ChildFailed, match=r"rank 1 of 2 ended by signal SIGKILL"):
        job.train()
    assert job.ranks() == []
    found, (other, expected) = job.train(), together
    assert found["digest"] == expected["digest"]
    assert {n: line["loss"] for n, line in job.steps().items()} == {
        n: line["loss"] for n, line in other.steps().items()
    }


def test_a_killed_rank_is_named_and_a_cancelled_run_goes_on_to_the_same_end(
    inputs: Path, together: tuple[Job, dict[str, Any]], tmp_path: Path
) -> None:
    """Kill -9 of rank 1, a retry, a cancel within 30 seconds, a retry: the digest of one left alone."""
    job = Job(inputs, tmp_path, devices=2)
    job.at = (15, lambda: numbered(job.ranks(), 1).kill())
    with pytest.raises(ChildFailed, match=r"rank 1 of 2 ended by signal SIGKILL") as caught:
        job.train()
    named = str(caught.value).partition("training with it; ")[2].partition(" ends:")[0]
    assert Path(named).is_file()
    assert Path(named).is_relative_to(tmp_path)
    assert job.ranks() == []
    assert job.checkpoints()

    first, asked = max(job.steps()), list[float]()
    job.lines, reached = [], max(job.checkpoints())

    def cancel() -> None:
        asked.append(time.monotonic())
        trainer = next(
            child
            for child in psutil.Process().children(recursive=True)
            if "tasks.processes.step_process" in child.cmdline()
        )
        os.killpg(trainer.pid, signal.SIGTERM)  # what tasks.processes.step_process does first

    job.at = (1, cancel)  # steps take some milliseconds here
    with pytest.raises(TrainingError, match=r"cancelled at step \d+ of 120"):
        job.train()
    assert time.monotonic() - asked[0] < 30
    assert job.ranks() == []
    assert reached <= first
    assert min(job.steps()) == reached + 1
    assert max(job.checkpoints()) == max(job.steps()) < 120

    second, job.lines = max(job.steps()), []
    found, (_, expected) = job.train(), together
    assert min(job.steps()) == second + 1
    assert found["digest"] == expected["digest"]
    counted = ("tokens", "completion_tokens", "train_loss", "last_loss")
    assert [found["metrics"][n] for n in counted] == [expected["metrics"][n] for n in counted]
    losses = together[0].steps()
    assert all(line["loss"] == losses[step]["loss"] for step, line in job.steps().items())


@pytest.mark.long
def test_ranks_killed_on_one_machine_resume_on_another_from_the_store(
    inputs: Path, together: tuple[Job, dict[str, Any]], tmp_path: Path
) -> None:
    """Rank 0 stores each checkpoint; the ranks of another machine end as an uninterrupted run does."""
    (store := tmp_path / "store").mkdir()
    here, there = (
        Job(inputs, tmp_path / name, devices=2, checkpoint_store=str(store))
        for name in ("here", "there")
    )
    here.at = (25, lambda: numbered(here.ranks(), 0).kill())
    with pytest.raises(ChildFailed, match="rank 0 of 2 ended by signal SIGKILL"):
        here.train()
    found, (_, expected) = there.train(), together
    assert min(there.steps()) > 20
    assert found["digest"] == expected["digest"]


def test_no_rank_outlives_the_process_that_runs_the_flow(inputs: Path, tmp_path: Path) -> None:
    """Kill -9 of it: all end within 30 seconds, with a checkpoint of the step they were at."""
    job = Job(inputs, tmp_path, devices=2, max_steps=100_000, save_steps=100_000)
    script = (
        "import json, sys; from pathlib import Path; from tasks.processes import step_process\n"
        "step_process.run('tasks.train.qlora:train', json.loads(sys.argv[1]), Path(sys.argv[2]))"
    )
    words = [sys.executable, "-c", script, json.dumps(job.payload), str(job.folder)]
    flow = subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        progress = tmp_path / "progress.jsonl"
        wait_for(lambda: progress.exists() and progress.read_text().count('"train"') > 3, 120)
        family = psutil.Process(flow.pid).children(recursive=True)
        assert len(family) == 4  # the fork server, torchrun's agent and two ranks
    finally:
        flow.kill()
        flow.wait()
    _, alive = psutil.wait_procs(family, 30)
    assert not alive
    assert job.checkpoints()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.long
def test_two_machines_meet_through_torchrun(
    inputs: Path,
    together: tuple[Job, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other machine runs torchrun itself and gets the call by broadcast: the very same adapter."""
    meeting = {
        "PET_RDZV_ENDPOINT": f"127.0.0.1:{free_port()}",
        "PET_RDZV_ID": "bench",
        "PET_LOCAL_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    for name, value in meeting.items():
        monkeypatch.setenv(name, value)
    words = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-backend",
        "c10d",
        "-m",
        "tasks.train.rank",
    ]
    with open(tmp_path / "other.txt", "w") as log:
        other = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words], stdout=log, stderr=log
        )
    try:
        found = Job(inputs, tmp_path / "here", devices=1, nodes=2).train()
        assert other.wait(60) == 0, (tmp_path / "other.txt").read_text()[-3000:]
    finally:
        other.kill()
        other.wait()
    assert found["digest"] == together[1]["digest"]
    assert found["metrics"]["tokens"] == together[1]["metrics"]["tokens"]


@pytest.mark.long
def test_the_fast_path_on_two_ranks(tmp_path: Path) -> None:
    """Compiled layers and fixed shapes, two processes: one process' losses; the leanest plan for all."""
    import ranks_fast

    expected = ranks_fast.trained(tmp_path / "one", accumulation=2)
    (tmp_path / "two").mkdir(exist_ok=True)
    first, second = two.processes("ranks_fast.py", tmp_path / "two", 240)
    assert first["steps"] == second["steps"]
    for ours, theirs in zip(first["steps"], expected["steps"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert first["tokens"] == second["tokens"] == expected["tokens"]
    # Memory ran out on the second one alone.
    assert first["recomputed"] == second["recomputed"] == 2
    assert expected["recomputed"] == 0
