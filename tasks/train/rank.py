"""One of several processes that train together, started by torchrun: `-m tasks.train.rank [FOLDER]`.

FOLDER holds the call (see launch). Only the machine that the flow runs on passes it; the others get
the call by broadcast. A rank ends when the torchrun that started it ends, and at most LIMIT_SECONDS
after a TERM: where another rank has died, the message that this one waits for never comes.
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
from tasks.processes import json_file, resource_usage, supervised

# Less than step_process.GRACE_SECONDS, after which the step's process is killed: the ranks end first.
LIMIT_SECONDS = 15.0


def main(arguments: list[str]) -> int:
    """Train with the other ranks; 0 on success, 1 after a PrecisError."""
    _end_in_time(int(os.environ.get("PRECIS_LAUNCHER") or os.getppid()))
    # One GPU a process, as torchrun's --virtual-local-rank has it.
    loading.one_gpu(int(os.environ["LOCAL_RANK"]))
    os.environ["LOCAL_RANK"] = "0"
    # Without it, sharded weights and those that loading drops would fragment the GPU's memory.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the variable's older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    from tasks.train import collectives

    collectives.init_process_group()
    call = collectives.first_not_none(
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
            _report_error(error, folder)
            return 1
        collectives.destroy_process_group()
    return 0


def _train(call: dict[str, Any], folder: Path) -> None:
    from tasks.contracts.recipe import Recipe
    from tasks.models.prepared_base import PreparedBase
    from tasks.train import collectives, qlora

    recipe, base = Recipe.model_validate(call["recipe"]), PreparedBase.from_json(call["base"])
    training = recipe.training
    if collectives.world_size() != training.devices * training.nodes:
        raise TrainingError(
            f"{collectives.world_size()} processes joined, and the recipe says "
            f"{training.nodes} machines with {training.devices} devices each; start torchrun with "
            f"--nnodes {training.nodes} --nproc-per-node {training.devices}"
        )
    answer = qlora.train_in_this_process(Path(call["rows"]), base, recipe, Path(call["folder"]))
    print(
        f"rank {collectives.rank()}: peak memory {resource_usage.peak_gib():.2f} GiB",
        file=sys.stderr,
        flush=True,
    )
    if collectives.rank() == 0:
        json_file.write(folder / "answer.json", answer)
    collectives.barrier()


def _report_error(error: PrecisError, folder: Path) -> None:
    from tasks.train import collectives

    traceback.print_exc()
    record = {"error": type(error).__name__, "message": str(error)}
    json_file.write(folder / f"error-{collectives.rank()}.json", record)


def _end_in_time(parent: int) -> None:
    """End when the parent ends, and at most LIMIT_SECONDS after TERM."""
    supervised.die_with_parent(parent)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    # Python runs its handlers in the main thread, which may wait for a rank that died; this byte is
    # written at once. Where no handler is set, before the first step, TERM ends the process anyway.
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    threading.Thread(target=_kill_after_term, args=(read_end,), daemon=True).start()


def _kill_after_term(signals: int) -> None:
    while signal.SIGTERM not in os.read(signals, 64):
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
            # A process group whose peer died may keep the interpreter from exiting.
            if sys.exc_info()[0]:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
