"""One of several processes that train together, started by torchrun: `-m tasks.train.rank [FOLDER]`.

FOLDER holds the call (see launch); only the machine that the flow runs on names it, the others are
told. A rank ends with the torchrun that started it, and at most LIMIT_SECONDS after it was told to:
where another one is gone, the message that it waits for never comes.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from tasks.contracts.errors import PrecisError, TrainingError
from tasks.models import loading
from tasks.processes import resource_usage, step_process

# Less than child.GRACE_SECONDS, after which the step's process is killed: it should see us end.
LIMIT_SECONDS = 15.0


def main(arguments: list[str]) -> int:
    """Train with the others; 0 when that went well, 1 after an error of ours."""
    _end_in_time(int(os.environ.get("PRECIS_LAUNCHER") or os.getppid()))
    # One GPU a process, as torchrun's --virtual-local-rank has it.
    loading.one_gpu(int(os.environ["LOCAL_RANK"]))
    os.environ["LOCAL_RANK"] = "0"
    # Weights that come and go, and those that are dropped while a base is loaded, leave holes else.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    from tasks.train import collectives

    collectives.join()
    call = collectives.first_of(
        json.loads((Path(arguments[0]) / "call.json").read_text()) if arguments else None
    )
    folder, reports = Path(call["folder"]) / "ranks", call.pop("reports")
    if collectives.rank() == 0 and reports:
        os.environ["PRECIS_CHILD_FOLDER"] = reports
    else:
        os.environ.pop("PRECIS_CHILD_FOLDER", None)
    with open(folder / "lock", "a+", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            _train(call, folder)
        except PrecisError as error:
            _complain(error, folder)
            return 1
        collectives.leave()
    return 0


def _train(call: dict[str, Any], folder: Path) -> None:
    from tasks.contracts.recipe import Recipe
    from tasks.models.prepared_base import PreparedBase
    from tasks.train import collectives, qlora
    from tasks.train.checkpoints import local

    recipe, base = Recipe.model_validate(call["recipe"]), PreparedBase.from_json(call["base"])
    training = recipe.training
    if collectives.size() != training.devices * training.nodes:
        raise TrainingError(
            f"{collectives.size()} processes came together, and the recipe says "
            f"{training.nodes} machines with {training.devices} devices each; start torchrun with "
            f"--nnodes {training.nodes} --nproc-per-node {training.devices}"
        )
    answer = qlora.train_here(Path(call["rows"]), base, recipe, Path(call["folder"]))
    print(
        f"rank {collectives.rank()}: peak memory {resource_usage.peak_gib():.2f} GiB",
        file=sys.stderr,
        flush=True,
    )
    if collectives.rank() == 0:
        local.write(folder / "answer.json", answer)
    collectives.wait()


def _complain(error: PrecisError, folder: Path) -> None:
    from tasks.train import collectives
    from tasks.train.checkpoints import local

    traceback.print_exc()
    said = {"error": type(error).__name__, "message": str(error)}
    local.write(folder / f"error-{collectives.rank()}.json", said)


def _end_in_time(parent: int) -> None:
    """End with the parent, and soon after TERM."""
    step_process.die_with_parent(parent)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    # Python's own handlers wait for the main thread, which may wait for a rank that is gone; this
    # byte comes at once. Where no handler is set, before the first step, TERM ends us anyway.
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    threading.Thread(target=_limit, args=(told,), daemon=True).start()


def _limit(told: int) -> None:
    while signal.SIGTERM not in os.read(told, 64):
        pass
    time.sleep(LIMIT_SECONDS)
    print(
        f"rank did not end within {LIMIT_SECONDS:.0f} s of TERM: killed",
        file=sys.stderr,
        flush=True,
    )
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    code = 1
    try:
        code = main(sys.argv[1:])
    finally:
        if code:
            # Without a peer, a process group may keep an interpreter from ending.
            if sys.exc_info()[0]:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
