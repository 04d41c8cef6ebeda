"""Run a command that ends with its starter: `python -P -m tasks.processes.supervised CMD...`.

A server or a worker left behind by a killed parent would hold its port, its database and its runs.
The parent keeps this process's standard input open. When that closes (the parent ended, even by
kill -9) or TERM arrives, the command and all its descendants are ended: TERM first, then KILL.

supervisor, circus and honcho were considered: none ties a child's life to its parent's.

    server = start(["prefect", "server", "start"], Path("server.log"))
    ...
    stop(server)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

# Without -P the working folder would come first on the path, and a user's own tasks.py or flows.py
# in it would be imported in place of ours.
PYTHON_MODULE = (sys.executable, "-P", "-m")
GRACE_SECONDS = 25.0  # the current training step ends, and its checkpoint is written
KILLED_SECONDS = 5.0
STOP_SECONDS = GRACE_SECONDS + 2 * KILLED_SECONDS


def start(command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> Any:
    """Start a command bound to this process; its output goes to the end of `log`. A Popen."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            [*PYTHON_MODULE, "tasks.processes.supervised", *command],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env=env,
            start_new_session=True,  # Ctrl-C at the terminal is for the parent, which then stops it
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End what `start` started, with all its descendants; returns when they are gone."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(words: list[str]) -> int:
    """The supervising process: start the command, wait for its end or the parent's; its exit status."""
    # Its own session: a signal to our group is then ours to pass on, in order.
    command = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    signal.signal(signal.SIGINT, lambda *_: ending.set())
    for waits in (_until_parent_ends, command.wait):
        threading.Thread(target=_then(waits, ending), daemon=True).start()
    ending.wait()
    end_family(command.pid)
    return command.wait()


def end_family(pid: int) -> None:
    """End a process, its descendants and its process group: TERM to each, KILL after the grace period."""
    family = group(pid)
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended before its descendants
        root = psutil.Process(pid)
        family |= {root, *root.children(recursive=True)}
    for process in family:
        _signal(process, signal.SIGTERM)
    # What they start while they are ending is in the group.
    _, left = psutil.wait_procs(family, timeout=GRACE_SECONDS)
    killed = {*left, *group(pid)}
    for process in killed:
        _signal(process, signal.SIGKILL)
    wait_for(killed)


def wait_for(killed: set[psutil.Process]) -> None:
    """Wait until killed processes are gone; only for a while: a parent that does not reap keeps zombies."""
    psutil.wait_procs(killed, timeout=KILLED_SECONDS)


def group(pid: int) -> set[psutil.Process]:
    """The live processes of a process group."""
    members = set()
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                members.add(process)
    return members


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _until_parent_ends() -> None:
    while os.read(0, 1024):
        pass


def _then(waits: Any, ending: threading.Event) -> Any:
    def run() -> None:
        waits()
        ending.set()

    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
