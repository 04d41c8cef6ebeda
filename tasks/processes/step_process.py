"""Run one function in its own process group, and end that group whatever happens.

Training, merging and generating each run in such a step process: GPU memory is freed when it ends, a
cancel reaches every rank, and the parent never imports torch. It writes to its own log file, never to
an inherited pipe (a live child that holds the worker's pipe keeps a Prefect run RUNNING), and it ends
with its parent. multiprocessing was considered: it neither ties the two lives nor ends a group.
It is forked from a server that has imported torch and transformers (forked_process), or a fresh interpreter.

    result = run("tasks.train.qlora:train", {"job": ...}, folder, on_progress=print)

The function gets the payload's values as keyword arguments and returns something JSON-able; inside
it, `report(...)` sends progress to the parent's `on_progress`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.contracts import errors
from tasks.processes import forked_process, resource_usage, supervised
from tasks.processes.file_lock import hold_lock

POLL_SECONDS = 0.1
GRACE_SECONDS = 20.0
MODULE = "tasks.processes.step_process"
Progress = Callable[[dict[str, Any]], None]
Process = subprocess.Popen[bytes] | forked_process.ForkedProcess


def run(
    target: str,
    payload: dict[str, Any],
    folder: Path,
    *,
    timeout_seconds: float | None = None,
    on_progress: Progress | None = None,
    threads: int | None = None,
    wait_seconds: float = 0.0,
    halt: Callable[[], bool] | None = None,
    fresh: bool = False,
) -> Any:
    """Call `module:function` with `payload` as keyword arguments in a child process.

    `folder` holds the child's input, answer, progress and log. A second child there waits up to
    `wait_seconds` for the first, and is then refused. The child is ended once `halt()` is true.
    `fresh`: in a fresh interpreter, for a function that needs neither torch nor transformers.
    Raises the child's own PrecisError, or ChildFailed with the end of the log when it died otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = errors.TrainingError(
        f"{folder} is in use by another run of the same step; wait for it, or end it"
    )
    with hold_lock(folder / "lock", wait_seconds, busy) as lock:
        for name in ("answer.json", "progress.jsonl", resource_usage.FILE):
            (folder / name).unlink(missing_ok=True)
        (folder / "call.json").write_text(json.dumps({"target": target, "payload": payload}))
        started = time.monotonic()

        def check() -> None:
            if halt and halt():
                raise errors.ChildFailed("ended, since another process of the same step failed")
            if timeout_seconds and time.monotonic() - started > timeout_seconds:
                raise errors.TrainingError(  # not ChildFailed: trying again would double the limit
                    f"no answer within {timeout_seconds:.0f} s; see {folder / 'log.txt'}, or raise "
                    "training.timeout_hours"
                )

        process = _start(folder, threads, lock, check, fresh)
        try:
            _follow(process, folder, on_progress, check)
        finally:
            end_group(process)
            if isinstance(process, forked_process.ForkedProcess):
                forked_process.let_go(process)
        return _answer(process, folder, target)


def report(**values: Any) -> None:
    """Send one line of progress to the parent (a no-op outside a child)."""
    folder = os.environ.get("PRECIS_CHILD_FOLDER")
    if folder:
        with open(Path(folder) / "progress.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps(values) + "\n")


def _start(
    folder: Path, threads: int | None, lock: int, check: Callable[[], None], fresh: bool
) -> Process:
    # Waiting threads sleep: with OpenMP's default they spin, and two busy processes on one machine
    # slow each other down tenfold (measured: 5.1 against 0.55 s a training step, 2 cores).
    env = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    env |= {"PRECIS_CHILD_FOLDER": str(folder), "TOKENIZERS_PARALLELISM": "false"}
    if threads:
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    arguments = [MODULE, str(folder)]
    with open(folder / "log.txt", "ab") as log:
        forked = None if fresh else forked_process.start(arguments, env, log, lock, check)
        return forked or subprocess.Popen(
            [*supervised.PYTHON_MODULE, *arguments, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            start_new_session=True,
            pass_fds=(lock,),
        )


def _follow(
    process: Process, folder: Path, on_progress: Progress | None, check: Callable[[], None]
) -> None:
    seen = 0
    while True:
        ended = process.poll() is not None or _is_lost(process)
        seen = _forward(folder / "progress.jsonl", seen, on_progress)
        if ended:
            return
        check()
        time.sleep(POLL_SECONDS)


def _is_lost(process: Process) -> bool:
    return isinstance(process, forked_process.ForkedProcess) and process.lost


def _forward(path: Path, seen: int, on_progress: Progress | None) -> int:
    if on_progress is None or not path.exists():
        return seen
    with path.open("rb") as lines:
        lines.seek(seen)
        for line in lines:
            if not line.endswith(b"\n"):  # still being written
                break
            on_progress(json.loads(line))
            seen += len(line)
    return seen


def end_group(process: Process) -> None:
    """End the child's whole process group: TERM first, then KILL; wait until it is gone."""
    for sig, wait in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        try:
            os.killpg(process.pid, sig)
        except ProcessLookupError:
            break
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
    # A killed process is not gone at once, and a GPU's memory is freed only when it is.
    supervised.wait_for(supervised.group(process.pid))


def _answer(process: Process, folder: Path, target: str) -> Any:
    path = folder / "answer.json"
    answer = json.loads(path.read_text()) if path.exists() else None
    if _is_lost(process) and (answer is None or "error" in answer):
        raise errors.ChildFailed(  # an error would only say that it was told to end
            f"{target} was ended, since its fork server was killed or ran out of memory; see "
            f"{folder / 'log.txt'}"
        )
    if answer is not None:
        if "error" in answer:
            raise errors.by_name(answer["error"])(answer["message"])
        return answer["result"]
    code = process.returncode or 0
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    tail = (folder / "log.txt").read_text(errors="replace")[-2000:]
    raise errors.ChildFailed(f"{target} ended by {how}{hint}; {folder / 'log.txt'} ends:\n{tail}")


def main(folder: Path, parent: int) -> int:
    """The child's side: read the call, make it, write the answer atomically."""
    supervised.die_with_parent(parent)
    call = json.loads((folder / "call.json").read_text())
    module, function = call["target"].split(":")
    try:
        result = getattr(importlib.import_module(module), function)(**call["payload"])
        answer: dict[str, Any] = {"result": result}
    except errors.PrecisError as error:
        traceback.print_exc()
        answer = {"error": type(error).__name__, "message": str(error)}
    resource_usage.leave(folder)
    partial = folder / "answer.json.partial"
    partial.write_text(json.dumps(answer))
    partial.replace(folder / "answer.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
