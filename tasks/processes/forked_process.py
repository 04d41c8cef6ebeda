"""Processes forked by a server (tasks.processes.fork_server) that has imported torch and transformers.

The server is started at the first call, by this process and for it alone, and ends with it. There is one
for each environment, since libraries read variables when they are imported: when a variable has
changed, another is started, and the old one is ended once it is idle.

Over 250 lines: the servers of this process, and the handles to what they forked, share one lock.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tasks.contracts.errors import ChildFailed
from tasks.processes import fork_server, supervised

POLL_SECONDS = 0.1
WAIT_POLL_SECONDS = 0.02
ANSWER_SECONDS = 60.0  # for a fork, on a machine that has no memory or time left
# Variables that nothing reads which the server imports. Prefect, MLflow and this project are imported by
# the forked process, which has the environment of the call.
READ_LATER = ("PREFECT_", "MLFLOW_", "PRECIS_", "PYTEST_", "_PYTEST")
PLACES = {"PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES"}
Key = tuple[Any, ...]


class ForkedProcess:
    """A process that the server forked, as subprocess.Popen: pid, returncode, poll, wait.

    `lost`: the server ended before the process did, so that its exit status is not known.
    """

    def __init__(self, connection: socket.socket, server: _Server) -> None:
        self.pid, self.lost, self.refusal = 0, False, ""
        self.returncode: int | None = None
        self.server = server
        self._connection, self._bytes = connection, b""
        connection.setblocking(False)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        if self.returncode is None:
            self._receive()
            if self.lost and not supervised.group(self.pid):
                self.returncode = -signal.SIGKILL
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if timeout is not None and end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(WAIT_POLL_SECONDS)
        assert self.returncode is not None
        return self.returncode

    def close(self) -> None:
        """Let go of it: the server ends it if it still runs."""
        self._connection.close()

    def started(self) -> bool:
        """Whether it is known to run, or is refused or lost."""
        self._receive()
        return bool(self.pid or self.refusal or self.lost)

    def _receive(self) -> None:
        while not self.lost and self.returncode is None and not self.refusal:
            try:
                data = self._connection.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.lost = True
            *lines, self._bytes = (self._bytes + data).split(b"\n")
            for line in lines:
                values = json.loads(line)
                self.pid = values.get("pid", self.pid)
                self.returncode = values.get("status")
                self.refusal = values.get("refused", "")


class _Server:
    """A fork server of this process, and the forked processes that are waited for."""

    def __init__(self, env: dict[str, str]) -> None:
        self.running, self.is_ready = 0, False
        self.refusal = ""
        self.output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the server)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [*supervised.PYTHON_MODULE, "tasks.processes.fork_server"]
            self.process = subprocess.Popen(
                [*words, fork_server.ROOM_FOR_NAME],
                stdin=theirs.fileno(),
                stdout=self.output,
                stderr=self.output,
                env=env,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the steps
            )

    def wait(self, check: Callable[[], None]) -> None:
        """Wait until it has imported everything, or has failed (`refusal`). `check` may raise."""
        while not self.is_ready and not self.refusal:
            check()
            with _lock:  # one of the threads that wait for it
                if self.is_ready or self.refusal:
                    return
                if select.select([self.control], [], [], 0)[0]:
                    self._read_answer()
                    continue
            time.sleep(POLL_SECONDS)

    def _read_answer(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            answer = self.control.recv(4096, socket.MSG_DONTWAIT)
            if answer == fork_server.READY:
                self.is_ready = True
                return
            if answer:
                self.refusal = answer.decode()
                self.control.close()  # it ends
                return
        self.process.wait(ANSWER_SECONDS)
        self.output.seek(0)
        tail = self.output.read()[-2000:].decode(errors="replace")
        self.refusal = f"it ended while it imported libraries; its output ends:\n{tail}"

    def usable(self) -> bool:
        """Whether it runs, or would refuse again; one that was killed is replaced."""
        status = self.process.poll()
        return status is None or bool(self.refusal and status >= 0)

    def end(self) -> None:
        """End it; what it forked and still runs gets TERM."""
        self.control.close()
        if not self.is_ready:  # it looks at its socket only after its imports
            self.process.kill()
        try:
            self.process.wait(supervised.KILLED_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()


_servers: dict[Key, _Server] = {}
_lock = threading.RLock()


def supported() -> bool:
    """Whether this machine can: it needs /proc. Whether a fork is safe, the server looks by itself."""
    return sys.platform == "linux"


def start(
    arguments: list[str],
    env: dict[str, str],
    log: IO[bytes],
    lock: int,
    check: Callable[[], None],
) -> ForkedProcess | None:
    """Have `main(Path(arguments[1]), parent)` of the module `arguments[0]` called in a forked process.

    Its environment is `env`, its working folder this process's, its output goes to `log`; it holds `lock`.
    None where only a fresh interpreter will do; the reason is then written to `log`. `check` is called
    while the server imports, and may raise. A server that ends meanwhile is replaced, once; then
    raises ChildFailed.
    """
    if not supported():
        return None
    request = {"arguments": arguments, "env": env}
    try:
        return _start(request, log, lock, check)
    except _ServerEnded:  # killed before it could fork, so that nothing has begun
        try:
            return _start(request, log, lock, check)
        except _ServerEnded as error:
            raise ChildFailed(str(error)) from None


class _ServerEnded(Exception):
    """A server ended before the process that it was asked for had started."""


def _start(
    request: dict[str, Any], log: IO[bytes], lock: int, check: Callable[[], None]
) -> ForkedProcess | None:
    server, process = _acquire(request["env"]), None
    try:
        server.wait(check)
        refusal = server.refusal
        if not refusal:
            process = _fork(server, request, log, lock)
            if refusal := process.refusal:
                process.close()
                process = None
    finally:
        if process is None:
            _release(server)
    if refusal:
        log.write(f"in a fresh interpreter: the fork server refused, {refusal}\n".encode())
        log.flush()
    return process


def let_go(process: ForkedProcess) -> None:
    """Say that a process from `start` is no longer waited for; it is ended if it still runs."""
    process.close()
    _release(process.server)


def _acquire(env: dict[str, str]) -> _Server:
    """The server for this environment, started if there is none; others are ended when idle."""
    key = _key(env)
    with _lock:
        for other, server in list(_servers.items()):
            if server.usable() and (other == key or server.running):
                continue
            del _servers[other]
            if not server.running:  # else a thread still reads from it
                server.end()
        server = _servers.get(key) or _Server(env)
        _servers[key] = server
        server.running += 1
        return server


def _release(server: _Server) -> None:
    with _lock:
        server.running -= 1


def _fork(server: _Server, call: dict[str, Any], log: IO[bytes], lock: int) -> ForkedProcess:
    ours, theirs = socket.socketpair()
    process = ForkedProcess(ours, server)
    request = os.memfd_create("call")  # no file: environments hold secrets
    folder = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        os.write(request, json.dumps(call | {"server": server.process.pid}).encode())
        os.lseek(request, 0, os.SEEK_SET)
        with contextlib.suppress(ConnectionError):  # then `theirs` closes unread: lost
            descriptors = [theirs.fileno(), request, log.fileno(), lock, folder]
            socket.send_fds(server.control, [b"fork"], descriptors)
        theirs.close()
        end = time.monotonic() + ANSWER_SECONDS
        while not process.started():
            if time.monotonic() > end:
                server.process.kill()  # so that it cannot fork later
            time.sleep(WAIT_POLL_SECONDS)
    except BaseException:
        process.close()  # the server ends what it has forked
        raise
    finally:
        theirs.close()
        os.close(request)
        os.close(folder)
    if process.lost and not process.pid:
        process.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # its socket closes a moment before
            server.process.wait(supervised.KILLED_SECONDS)
        raise _ServerEnded(
            f"the fork server (process {server.process.pid}) ended before the step had started: killed, "
            "or out of memory; run again"
        )
    return process


def _key(env: dict[str, str]) -> Key:
    """What a server's imports depend on."""
    kept = {
        name: value
        for name, value in env.items()
        if name not in PLACES and not name.startswith(READ_LATER)
    }
    paths = env.get("PYTHONPATH")
    # Python makes these absolute when it starts.
    relative = paths is not None and not all(map(os.path.isabs, paths.split(os.pathsep)))
    return (tuple(sorted(kept.items())), str(Path.cwd()) if relative else "")


@atexit.register
def _end_all() -> None:
    with _lock:
        while _servers:
            _servers.popitem()[1].end()


def _forget() -> None:
    """In a fork of this process: the servers are its parent's."""
    _servers.clear()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget)
