"""Train on several devices: torchrun's own agent, in the step's process, over one process a device.

    FOLDER/ranks/call.json         what to train; read by the ranks
    FOLDER/ranks/answer.json       written by rank 0
    FOLDER/ranks/error-RANK.json   an error of ours, written by the rank that met it
    FOLDER/ranks/lock              held (shared) by each rank while it lives
    FOLDER/ranks/log-TIME/RUN/attempt_0/LOCAL_RANK/stderr.log

With training.nodes above 1 the other machines run the same ranks by torchrun itself (docs/devices.md)
and see FOLDER, rows and base under the same paths.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.contracts import errors
from tasks.contracts.errors import ChildFailed, PrecisError, TrainingError
from tasks.contracts.recipe import Training
from tasks.processes import device
from tasks.processes.file_lock import hold_lock
from tasks.train.checkpoints import local

MEETING = ("PET_RDZV_ENDPOINT", "PET_MASTER_ADDR")  # torchrun's arguments as variables
LEFT_SECONDS = 60.0  # for ranks of a killed run, which end by themselves: see rank.LIMIT_SECONDS
LOG_END = 2000  # characters of a rank's log in an error


def wanted(training: Training) -> bool:
    """Whether it takes more than one process."""
    return training.devices * training.nodes > 1


def problems(training: Training) -> list[str]:
    """What would stop a training on these devices here, each with its mend. Imports no torch."""
    found = []
    gpus = device.count()
    there = gpus or _cores()
    if wanted(training) and training.devices > there:
        kind = "GPUs" if gpus else "CPU cores and no GPU"
        found.append(
            f"training.devices is {training.devices}, and this machine shows {there} {kind}; set it to "
            f"{there} or less (with training.gradient_accumulation_steps raised as much, steps stay "
            "the same), look at CUDA_VISIBLE_DEVICES, or run where there are more"
        )
    if training.nodes > 1 and not any(os.environ.get(name) for name in MEETING):
        found.append(
            f"training.nodes is {training.nodes}, and nothing says where the machines meet: set "
            f"torchrun's {MEETING[0]}=HOST:PORT (and PET_RDZV_ID) here and on the others, or its "
            f"{MEETING[1]}, PET_MASTER_PORT and PET_NODE_RANK; see docs/devices.md"
        )
    return found


def facts(training: Training) -> list[str]:
    """What precis check says of several devices."""
    if not wanted(training):
        return []
    count = training.devices * training.nodes
    each = training.per_device_train_batch_size * training.gradient_accumulation_steps
    where = "GPUs" if device.count() else "processes on the CPU"
    return [
        f"training on {count} {where}, each with the memory named for training: "
        f"a step learns {each * count} sequences, {each} on each"
    ]


def train(call: dict[str, Any], training: Training, folder: Path) -> dict[str, Any]:
    """Train `call` (tasks.train.qlora.train's arguments) on `training.devices` devices; its answer.

    Raises the error of a rank, TrainingError when cancelled, ChildFailed naming the rank that ended
    otherwise, and its log.
    """
    if found := problems(training):
        raise TrainingError.of(found)
    ranks = folder / "ranks"
    ranks.mkdir(parents=True, exist_ok=True)
    _wait_for_former(ranks)
    for path in (ranks / "answer.json", *ranks.glob("error-*.json")):
        path.unlink(missing_ok=True)
    call = call | {"reports": os.environ.get("PRECIS_CHILD_FOLDER")}
    local.write(ranks / "call.json", call)
    with _surroundings(training):
        _run(training, ranks)
    answer: dict[str, Any] = json.loads((ranks / "answer.json").read_text())
    return answer


def _run(training: Training, ranks: Path) -> None:
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import launch_agent

    logs = ranks / time.strftime("log-%Y%m%d-%H%M%S")
    config = torchrun.config_from_args(torchrun.parse_args(_words(training, ranks, logs)))
    try:
        launch_agent(*config)
    except ChildFailedError as error:
        raise _said(ranks) or _ended(error.failures, training, logs) from error
    except SignalException as error:
        raise _said(ranks) or TrainingError(
            "training was cancelled outside of its steps; the same recipe goes on from what is kept"
        ) from error


def _words(training: Training, ranks: Path, logs: Path) -> list[str]:
    """torchrun's command line; what it does not say comes from PET_ variables, as in torchrun."""
    words = ["--nnodes", str(training.nodes), "--nproc-per-node", str(training.devices)]
    # Once one rank is gone all end; a retry of the step goes on from the last whole checkpoint.
    words += ["--max-restarts", "0", "--redirects", "3", "--log-dir", str(logs)]
    if training.nodes == 1:
        words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        words += ["--rdzv-id", uuid.uuid4().hex, "--local-addr", "localhost"]
    elif os.environ.get(MEETING[0]) and not os.environ.get("PET_RDZV_BACKEND"):
        words += ["--rdzv-backend", "c10d"]
    # As torchrun starts a module (-u -m), but with -P: see supervised.PYTHON_MODULE.
    python = [sys.executable, "-u", "-P", "-m"]
    return [*words, "--no-python", *python, "tasks.train.rank", str(ranks)]


@contextlib.contextmanager
def _surroundings(training: Training) -> Iterator[None]:
    """Variables for the ranks; they, and what torchrun does to signals, are undone afterwards."""
    before = dict(os.environ)
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in caught}
    values = {
        "OMP_NUM_THREADS": str(max(1, _cores() // training.devices)),  # torchrun's own choice: 1
        "PRECIS_LAUNCHER": str(os.getpid()),
    }
    if training.nodes == 1:  # whatever names and networks this machine has
        values |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    os.environ.update(
        {k: v for k, v in values.items() if k not in before or k == "PRECIS_LAUNCHER"}
    )
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(before)


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _wait_for_former(ranks: Path) -> None:
    """Until no rank of a run that was killed is left: it may still be writing a checkpoint."""
    left = f"ranks of an earlier run are still at work in {ranks}; wait for them, or end them"
    with hold_lock(ranks / "lock", LEFT_SECONDS, TrainingError(left)):
        return


def _said(ranks: Path) -> PrecisError | None:
    """The error of ours that a rank met, the first one's rather than another's."""
    for path in sorted(ranks.glob("error-*.json"), key=lambda p: int(p.stem.rpartition("-")[2])):
        said = json.loads(path.read_text())
        return errors.by_name(said["error"])(said["message"])
    return None


def _ended(failures: dict[int, Any], training: Training, logs: Path) -> ChildFailed:
    """Which rank ended, how, and where its log is.

    `failures` are torchrun's, in the order in which it met them. Those that were killed are named
    before others: without a peer the next message fails.
    """
    killed = [r for r, f in failures.items() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
    rank = killed[0] if killed else next(iter(failures))
    failure = failures[rank]
    how = f"exit status {failure.exitcode}"
    if failure.exitcode < 0:
        how = f"signal {signal.Signals(-failure.exitcode).name}"
    hint = " (out of memory?)" if failure.exitcode == -signal.SIGKILL else ""
    [log] = logs.glob(f"*/attempt_0/{failure.local_rank}/stderr.log")
    tail = log.read_text(errors="replace")[-LOG_END:]
    return ChildFailed(
        f"rank {rank} of {training.devices * training.nodes} ended by {how}{hint}, and training with "
        f"it; {log} ends:\n{tail}"
    )
