"""Train on several devices: torchrun's agent, in the step's process, starts one process a device.

    FOLDER/ranks/call.json         what to train; read by the ranks
    FOLDER/ranks/answer.json       written by rank 0
    FOLDER/ranks/error-RANK.json   a PrecisError, written by the rank that raised it
    FOLDER/ranks/lock              locked (shared) by each rank while it lives
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
from tasks.processes import device, json_file
from tasks.processes.file_lock import hold_lock

RENDEZVOUS_VARIABLES = ("PET_RDZV_ENDPOINT", "PET_MASTER_ADDR")  # torchrun's arguments as variables
# To wait for ranks of a killed run, which end by themselves: rank.LIMIT_SECONDS.
LEFT_SECONDS = 60.0
LOG_END = 2000  # characters of a rank's log in an error


def needs_several_processes(training: Training) -> bool:
    """Whether training takes more than one process."""
    return training.devices * training.nodes > 1


def problems(training: Training) -> list[str]:
    """What would stop a training on these devices here, each with its fix. Imports no torch."""
    reasons = []
    gpus = device.count()
    available = gpus or _cores()
    if needs_several_processes(training) and training.devices > available:
        kind = "GPUs" if gpus else "CPU cores and no GPU"
        reasons.append(
            f"training.devices is {training.devices}, and this machine shows {available} {kind}; set it to "
            f"{available} or less (with training.gradient_accumulation_steps raised as much, steps stay "
            "the same), look at CUDA_VISIBLE_DEVICES, or run where there are more"
        )
    if training.nodes > 1 and not any(os.environ.get(name) for name in RENDEZVOUS_VARIABLES):
        reasons.append(
            f"training.nodes is {training.nodes}, and nothing says where the machines meet: set "
            f"torchrun's {RENDEZVOUS_VARIABLES[0]}=HOST:PORT (and PET_RDZV_ID) here and on the others, "
            f"or its {RENDEZVOUS_VARIABLES[1]}, PET_MASTER_PORT and PET_NODE_RANK; see docs/devices.md"
        )
    return reasons


def facts(training: Training) -> list[str]:
    """Lines of `precis check` about training on several devices."""
    if not needs_several_processes(training):
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

    Raises the PrecisError of a rank, TrainingError when cancelled, or ChildFailed, which names the
    rank that ended otherwise, and its log.
    """
    if reasons := problems(training):
        raise TrainingError.of(reasons)
    ranks = folder / "ranks"
    ranks.mkdir(parents=True, exist_ok=True)
    _wait_for_earlier_ranks(ranks)
    for path in (ranks / "answer.json", *ranks.glob("error-*.json")):
        path.unlink(missing_ok=True)
    call = call | {"reports": os.environ.get("PRECIS_CHILD_FOLDER")}
    json_file.write(ranks / "call.json", call)
    with _rank_environment(training):
        _run(training, ranks)
    answer: dict[str, Any] = json.loads((ranks / "answer.json").read_text())
    return answer


def _run(training: Training, ranks: Path) -> None:
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import launch_agent

    logs = ranks / time.strftime("log-%Y%m%d-%H%M%S")
    config = torchrun.config_from_args(
        torchrun.parse_args(_torchrun_arguments(training, ranks, logs))
    )
    try:
        launch_agent(*config)
    except ChildFailedError as error:
        raise _error_of_ranks(ranks) or _rank_failure(error.failures, training, logs) from error
    except SignalException as error:
        raise _error_of_ranks(ranks) or TrainingError(
            "training was cancelled before or after its steps; start the same recipe again, and it "
            "goes on from the last checkpoint"
        ) from error


def _torchrun_arguments(training: Training, ranks: Path, logs: Path) -> list[str]:
    """torchrun's command line; other settings come from PET_ variables, as with torchrun itself."""
    arguments = ["--nnodes", str(training.nodes), "--nproc-per-node", str(training.devices)]
    # When one rank dies all end; a retry of the step goes on from the last complete checkpoint.
    arguments += ["--max-restarts", "0", "--redirects", "3", "--log-dir", str(logs)]
    if training.nodes == 1:
        arguments += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        arguments += ["--rdzv-id", uuid.uuid4().hex, "--local-addr", "localhost"]
    elif os.environ.get(RENDEZVOUS_VARIABLES[0]) and not os.environ.get("PET_RDZV_BACKEND"):
        arguments += ["--rdzv-backend", "c10d"]
    # As torchrun starts a module (-u -m), but with -P: see supervised.PYTHON_MODULE.
    python = [sys.executable, "-u", "-P", "-m"]
    return [*arguments, "--no-python", *python, "tasks.train.rank", str(ranks)]


@contextlib.contextmanager
def _rank_environment(training: Training) -> Iterator[None]:
    """Set variables for the ranks; they and torchrun's signal handlers are undone afterwards."""
    before = dict(os.environ)
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in caught}
    values = {
        "OMP_NUM_THREADS": str(max(1, _cores() // training.devices)),  # torchrun would set 1
        "PRECIS_LAUNCHER": str(os.getpid()),
    }
    if training.nodes == 1:  # works whatever the machine's host name and networks
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


def _wait_for_earlier_ranks(ranks: Path) -> None:
    """Wait until the ranks of a killed run have ended: they may still be writing a checkpoint."""
    left = f"ranks of an earlier run are still running in {ranks}; wait for them, or end them"
    with hold_lock(ranks / "lock", LEFT_SECONDS, TrainingError(left)):
        return


def _error_of_ranks(ranks: Path) -> PrecisError | None:
    """The PrecisError of the lowest failing rank."""
    for path in sorted(ranks.glob("error-*.json"), key=lambda p: int(p.stem.rpartition("-")[2])):
        record = json.loads(path.read_text())
        return errors.by_name(record["error"])(record["message"])
    return None


def _rank_failure(failures: dict[int, Any], training: Training, logs: Path) -> ChildFailed:
    """An error that says which rank ended, how, and where its log is.

    `failures` are torchrun's, in the order in which it saw them. A rank that was killed is named
    before others, which failed because it was gone.
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
