"""Checks of several devices before a process is started, and how rows are split over ranks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from torch.utils.data import BatchSampler

from tasks.contracts.errors import TrainingError
from tasks.contracts.recipe import Training
from tasks.models import loading
from tasks.models.encoding import IGNORED
from tasks.processes import device
from tasks.train import distributed_sampler, launch, qlora
from tasks.train import task as training
from tasks.train.checkpoints import local


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in launch.RENDEZVOUS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return lambda count: monkeypatch.setattr(device, "count", lambda: count)


def test_more_devices_than_there_are_is_a_problem_of_precis_check(gpus: Any) -> None:
    """It says how many there are; all problems at once; one device is never a problem."""
    gpus(2)
    recipe = tiny.make_recipe(Path("base"), training={"devices": 4, "nodes": 2})
    facts, (devices, nodes) = training.preflight(recipe)
    assert devices.startswith("training.devices is 4, and this machine shows 2 GPUs; set it to 2")
    assert "PET_RDZV_ENDPOINT=HOST:PORT" in nodes
    assert "a step learns 16 sequences, 2 on each" in facts[0]
    gpus(4)
    assert launch.problems(Training(devices=4)) == []
    gpus(0)
    [cores] = launch.problems(Training(devices=10_000))
    assert "CPU cores and no GPU" in cores
    assert training.preflight(tiny.make_recipe(Path("base"))) == ([], [])


def test_machines_that_know_where_to_meet_are_no_problem(
    gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either of torchrun's variables is enough."""
    gpus(8)
    for name in launch.RENDEZVOUS_VARIABLES:
        with monkeypatch.context() as inner:
            inner.setenv(name, "host")
            assert launch.problems(Training(devices=8, nodes=2)) == []


def test_devices_are_part_of_what_weights_depend_on() -> None:
    """Each number has its own keys; those of one device stay what they were."""
    one = local.deciding_settings(Training())
    assert not {"devices", "nodes"} & one.keys()
    two, twice = (
        local.deciding_settings(Training(devices=2)),
        local.deciding_settings(Training(nodes=2)),
    )
    assert two == one | {"devices": 2}
    assert twice == one | {"nodes": 2}


def batches_by_rank(rows: int, batch: int, ranks: int, epoch: int) -> list[list[list[int]]]:
    """Batches of each rank, as accelerate splits them."""
    by_rank = []
    for rank in range(ranks):
        sampler = distributed_sampler.PaddedSampler(rows, batch * ranks, 7)
        sampler.set_epoch(epoch)
        batches = BatchSampler(sampler, batch, drop_last=False)
        by_rank.append(list(BatchSamplerShard(batches, ranks, rank)))
    return by_rank


@pytest.mark.parametrize(("rows", "batch", "ranks"), [(21, 2, 2), (5, 2, 4), (12, 3, 2), (7, 1, 3)])
def test_each_round_is_what_one_process_learns_in_as_many_micro_batches(
    rows: int, batch: int, ranks: int
) -> None:
    """In every epoch the same rows in the same order; missing ones are padding rows."""
    for epoch in (0, 1):
        order = SeedableRandomSampler(range(rows), data_seed=7)
        order.set_epoch(epoch)
        alone = list(BatchSampler(order, batch, drop_last=False))
        by_rank = batches_by_rank(rows, batch, ranks, epoch)
        assert len({len(batches) for batches in by_rank}) == 1
        together = list(itertools.chain(*zip(*by_rank, strict=True)))
        without_padding = [[row for row in each if row != rows] for each in together]
        assert [each for each in without_padding if each] == alone
        assert all(len(each) == batch for each in together)


def test_padding_rows_are_dropped_from_all_batches_but_those_of_padding_alone() -> None:
    """A batch of padding alone counts no tokens."""
    row = {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}
    padding = {"input_ids": [0], "labels": [IGNORED]}
    seen = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        seen.append(rows)
        return {"rows": len(rows)}

    collator = distributed_sampler.PaddingRowFilter(collate)
    assert collator([row, padding]) == {"rows": 1}
    assert collator([padding, padding]) == {"rows": 1, "real_tokens": 0}
    assert seen == [[row], [padding]]


@dataclass
class Failure:
    """As torchrun describes a rank that failed."""

    exitcode: int
    local_rank: int


def test_the_rank_that_was_killed_is_named_before_those_that_missed_it(tmp_path: Path) -> None:
    """The others failed because it was gone: their errors explain nothing."""
    for rank in range(3):
        log = tmp_path / "run_x" / "attempt_0" / str(rank) / "stderr.log"
        log.parent.mkdir(parents=True)
        log.write_text(f"log of {rank}")
    failures = {0: Failure(1, 0), 2: Failure(-9, 2), 1: Failure(-15, 1)}
    message = str(launch._rank_failure(failures, Training(devices=3), tmp_path))
    assert message.startswith("rank 2 of 3 ended by signal SIGKILL (out of memory?), and training")
    assert message.endswith(f"{tmp_path}/run_x/attempt_0/2/stderr.log ends:\nlog of 2")
    only = launch._rank_failure({1: Failure(3, 1)}, Training(devices=3), tmp_path)
    assert "rank 1 of 3 ended by exit status 3" in str(only)


def test_a_base_that_does_not_fit_one_gpu_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer bits, a smaller base, more devices with a part of it each, or more memory."""

    def full(*_: Any, **__: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    base = tiny.make_tiny_base(tmp_path / "base")
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.make_rows(4))
    monkeypatch.setattr(loading, "load_base", full)
    recipe, prepared = tiny.make_recipe(base).model_dump(mode="json"), tiny.prepared(base).as_json()
    with pytest.raises(
        TrainingError,
        match=r"does not fit the GPU.*nf4.*more devices.*base_weights: sharded.*docs/devices",
    ):
        qlora.train(str(rows), prepared, recipe, str(tmp_path / "job"))
