"""`precis` in milliseconds: one process imports everything once, and forks for each command.

What a test sees is a process of its own with its own files, environment and exit status, as a shell
starts it; only the seconds of imports are saved. Some tests start the real command all the same.
`-c SCRIPT ARGUMENTS` in place of a verb runs a script, as `python -c` does.

A command finds its fork server (tasks.processes.fork_server) started: another fork, which saves the imports
of torch and transformers for its steps. All else about it is as it would be.

Run as a script it is that process: it reads a request in JSON per line and answers in JSON.

Over 250 lines: both ends of one pipe, and what a fork becomes.
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
        process = self.start(argv, folder, environment, stdin)
        process.wait()
        return subprocess.CompletedProcess(argv, process.returncode, *process.communicate())

    def start(
        self,
        argv: list[str],
        folder: Path,
        environment: dict[str, str],
        stdin: str = "",
        log: Path | None = None,
    ) -> WarmProcess:
        """The same command in the background. Its standard error is appended to `log`, if there is one."""
        scratch = tempfile.TemporaryDirectory()
        files = [Path(scratch.name) / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(stdin)
        files[2] = log or files[2]
        call = {
            "argv": argv,
            "folder": str(folder),
            "environment": _without_torchs(environment),
            "files": [str(file) for file in files],
        }
        return WarmProcess(self, self.ask({"call": call}), files, scratch)

    def ask(self, request: dict[str, Any]) -> Any:
        """The process' answer to a request: see `serve`."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the warm process ended with {self.process.wait()}"
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


class WarmProcess:
    """What tests use of subprocess.Popen, of a command that was forked."""

    def __init__(self, precis: WarmPrecis, pid: int, files: list[Path], scratch: Any) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._precis, self._files, self._scratch = precis, files, scratch

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._precis.ask({"poll": self.pid})
        return self.returncode

    def wait(self) -> int:
        """Its exit status; no other command of the same warm process is answered before."""
        if self.returncode is None:
            self.returncode = self._precis.ask({"wait": self.pid})
        assert self.returncode is not None
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """All that it wrote to standard output and to standard error, once it has ended."""
        self.wait()
        out, err = (file.read_text() for file in self._files[1:])
        return out, err


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
    """Answer the requests on standard input. In a fork this returns what its command returned.

    {"call": ...} forks and gives the pid; {"wait": pid} the exit status; {"poll": pid} that, or null.
    """
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
        request = json.loads(line)
        if "call" not in request:
            pid, options = (
                (request["wait"], 0) if "wait" in request else (request["poll"], os.WNOHANG)
            )
            ended, status = os.waitpid(pid, options)
            answers.write(f"{os.waitstatus_to_exitcode(status) if ended else 'null'}\n")
            answers.flush()
            continue
        pid = os.fork()
        if not pid:
            call = request["call"]
            _become(call)
            if forked_process._key(_environment_of_steps()) == imported_with:
                forked_process._servers[imported_with] = _ForkedServer()
            argv = call["argv"]
            if argv[0] != "-c":
                return main(argv)
            exec(argv[1], {"__name__": "__main__"})
            return 0
        answers.write(f"{pid}\n")
        answers.flush()
    return 0


def _become(call: dict[str, Any]) -> None:
    """Take folder, environment and standard files of a call, as a process that was just started."""
    from prefect.context import refresh_global_settings_context

    from flows.cli.entry import ENVIRONMENT  # set there before Prefect is imported

    os.environ.clear()
    os.environ.update(ENVIRONMENT | call["environment"])
    os.chdir(call["folder"])
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    modes = (os.O_RDONLY, appending, appending)
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
