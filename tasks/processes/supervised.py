"""Run a command that ends with its starter: `python -P -m tasks.processes.supervised CMD...`.

A server or a worker left behind by a killed parent would hold its port, its database and its runs.
The parent keeps this process's standard input open. When that closes (the parent ended, even by
kill -9), TERM arrives or the command ends, even by kill -9, the command and all its descendants are ended:
TERM first, then KILL. On Linux the command gets TERM too when this process itself is killed, and what the
command leaves behind becomes a child of this process; elsewhere only its process group is found then.

supervisor, circus and honcho were considered: none ties a child's life to its parent's.

    server = start(["prefect", "server", "start"], Path("server.log"))
    ...
    stop(server)
"""

from __future__ import annotations

import contextlib
import ctypes
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
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
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
    adopt_orphans()
    this = os.getpid()
    # Its own session: a signal to our group is then ours to pass on, in order.
    command = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(this),  # noqa: PLW1509 - it has no thread yet
    )
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    signal.signal(signal.SIGINT, lambda *_: ending.set())
    for waits in (_until_parent_ends, lambda: _until_ended(command)):
        threading.Thread(target=_then(waits, ending), daemon=True).start()
    ending.wait()
    end_family(command.pid)
    return command.wait()


def adopt_orphans() -> None:
    """Have the kernel make descendants whose parent has ended children of this process (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have the kernel send TERM to this process when its parent, the process `parent`, is gone."""
    # Linux only; elsewhere a child of a killed parent ends when its work does.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the call above
            sys.exit(1)


def end_family(pid: int | None = None) -> None:
    """End all processes below this one, and the group `pid`: TERM to each, KILL after the grace period."""
    family = _family(pid)
    for process in family:
        _signal(process, signal.SIGTERM)
    psutil.wait_procs(family, timeout=GRACE_SECONDS)
    killed = _family(pid)  # with what they started while they were ending
    for process in killed:
        _signal(process, signal.SIGKILL)
    wait_for(killed)


def _family(pid: int | None) -> set[psutil.Process]:
    return {*psutil.Process().children(recursive=True), *(group(pid) if pid else ())}


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


def _until_ended(command: subprocess.Popen[bytes]) -> None:
    """Wait for the command's end; meanwhile adopted orphans that end are reaped."""
    while sys.platform == "linux" and command.returncode is None:
        with contextlib.suppress(ChildProcessError):  # reaped by `end_family`
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            if ended is None or ended.si_pid == command.pid:
                break
            os.waitpid(ended.si_pid, 0)
    command.wait()


def _then(waits: Any, ending: threading.Event) -> Any:
    def run() -> None:
        waits()
        ending.set()

    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
