"""`precis` in milliseconds: one process imports everything once, and forks for each command.

What a test sees is a process of its own with its own files, environment and exit status, as a shell
starts it; only the seconds of imports are saved. Some tests start the real command all the same.
`-c SCRIPT ARGUMENTS` in place of a verb runs a script, as `python -c` does.

A command finds its fork server (tasks.processes.fork_server) started: another fork, which saves the imports
of torch and transformers for its steps. All else about it is as it would be.

Run as a script it is that process: it reads a call in JSON per line and answers with exit statuses.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tasks.processes import fork_server, forked_process

# Torch sets these when it is imported, here in pytest's own process; no shell has them.
SET_BY_TORCH = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR")


class WarmPrecis:
    """Runs `precis ARGV` in forks of one process; close it in the end."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            env=_without_torchs(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self, argv: list[str], folder: Path, environment: dict[str, str], stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run` would return for the same command in that folder and environment."""
        assert self.process.stdin
        assert self.process.stdout
        with tempfile.TemporaryDirectory() as scratch:
            files = [Path(scratch) / name for name in ("stdin", "stdout", "stderr")]
            files[0].write_text(stdin)
            call = {
                "argv": argv,
                "folder": str(folder),
                "environment": _without_torchs(environment),
                "files": [str(file) for file in files],
            }
            self.process.stdin.write(json.dumps(call) + "\n")
            self.process.stdin.flush()
            status = self.process.stdout.readline()
            assert status, f"the warm process ended with {self.process.wait()}"
            texts = [file.read_text() for file in files[1:]]
        return subprocess.CompletedProcess(argv, int(status), *texts)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def _without_torchs(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in SET_BY_TORCH}


@functools.cache
def warm_precis() -> WarmPrecis:
    """The one of this process, started when it is first asked for."""
    home = tempfile.TemporaryDirectory(prefix="warm-precis-")
    precis = WarmPrecis(dict(os.environ) | {"PREFECT_HOME": home.name})
    atexit.register(home.cleanup)
    atexit.register(precis.close)  # before the line above: the last registered comes first
    return precis


def serve() -> int:
    """Fork for each call on standard input. In a fork this returns what its command returned."""
    import gc
    import threading

    imported_with = forked_process._key(_environment_of_steps())
    os.environ.update(fork_server.WHILE_IMPORTING)
    fork_server.import_libraries()
    for name in fork_server.WHILE_IMPORTING:
        del os.environ[name]
    import mlflow  # noqa: F401

    import flows.check
    import flows.cli.app
    import flows.evaluate
    import flows.retrain
    import flows.stack.embedded  # noqa: F401
    from flows.cli.entry import main

    gc.collect()
    gc.freeze()  # a collection in a fork would look at, and copy, all that was imported here
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        assert threading.active_count() == 1, threading.enumerate()  # a fork has only one
        pid = os.fork()
        if not pid:
            call = json.loads(line)
            _become(call)
            if forked_process._key(_environment_of_steps()) == imported_with:
                forked_process._servers[imported_with] = _ForkedServer()
            argv = call["argv"]
            if argv[0] != "-c":
                return main(argv)
            exec(argv[1], {"__name__": "__main__"})
            return 0
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        answers.flush()
    return 0


def _become(call: dict[str, Any]) -> None:
    """Take folder, environment and standard files of a call, as a process that was just started."""
    from prefect.context import refresh_global_settings_context

    from flows.cli.entry import ENVIRONMENT  # set there before Prefect is imported

    os.environ.clear()
    os.environ.update(ENVIRONMENT | call["environment"])
    os.chdir(call["folder"])
    modes = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for number, (file, mode) in enumerate(zip(call["files"], modes, strict=True)):
        os.dup2(os.open(file, mode, 0o600), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the buffer of the old one is the next call's
    argv = call["argv"]
    sys.argv = ["-c", *argv[2:]] if argv[0] == "-c" else ["precis", *argv]
    refresh_global_settings_context()


def _environment_of_steps() -> dict[str, str]:
    """What step_process gives to a step, as far as a fork server's imports depend on it."""
    return {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {"TOKENIZERS_PARALLELISM": "false"}


class _ForkedServer(forked_process._Server):
    """A fork server that is a fork of this process, in place of a new one that imports everything."""

    def __init__(self) -> None:
        self.running, self.is_ready, self.refusal = 0, False, ""
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the server
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if not pid:
            os.setsid()
            for number, file in enumerate((theirs, self.output, self.output)):
                os.dup2(file.fileno(), number)
            self.control.close()
            theirs.close()
            sys.exit(fork_server.main())
        theirs.close()
        self.process: Any = _Child(pid)


class _Child:
    """What forked_process uses of subprocess.Popen, of a child that was forked here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(0.02)
        return status

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(serve())
