"""A process that has imported torch and transformers, and forks one for each call that it is asked for.

`python -P -m tasks.processes.fork_server`, started by tasks.processes.forked_process, whose socket is its
standard input: it ends when that closes, or when the process that started it is gone. The kernel then
sends TERM to what it forked, which asked for that (supervised.die_with_parent).

multiprocessing's forkserver was considered: it imports the caller's __main__ again, ties no two lives
together, and gives its children the environment of its own start.

A fork is as good as a fresh interpreter only from a process of one thread that has not touched CUDA; both
are looked at before each fork, and where they do not hold it refuses. So it imports, and computes nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

READY = b"ready"
POLL_SECONDS = 0.05  # of the ends of what it forked
PARENT_POLL_SECONDS = 2.0
GRACE_SECONDS = 20.0
# conn, call, log, lock, working folder: what comes with each request, see forked_process.
DESCRIPTORS = 5
# Set while importing only. pyarrow's allocator would start a thread, and torch would ask for GPUs through
# the driver, which no fork survives, in place of through NVML.
WHILE_IMPORTING = {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
# Written over by the child's name; a command line cannot grow.
ROOM_FOR_NAME = " " * 1024
GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
CUDA_NOT_INITIALIZED = 3


def import_libraries() -> None:
    """Import what most steps need. Nothing here may compute, start a thread or touch CUDA."""
    import torch  # noqa: F401
    import transformers

    # Asking for a name of transformers imports the modules behind it. Those of training import peft, which
    # imports bitsandbytes, which may ask the driver: only where there is no GPU.
    names = ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "GenerationConfig"]
    if not has_gpu():
        names.append("Trainer")
    for name in names:
        getattr(transformers, name)


def has_gpu() -> bool:
    """Whether this machine has the device files of a GPU's driver."""
    return any(os.path.exists(path) for path in GPU_FILES)


def unsafe() -> str | None:
    """Why a fork of this process would not be as good as a fresh interpreter; None where it is."""
    threads = {thread.name for thread in threading.enumerate()}
    if len(threads) > 1:
        return f"its imports started threads: {', '.join(sorted(threads))}"
    if (count := len(os.listdir("/proc/self/task"))) > 1:
        return f"its imports started {count - 1} threads of native code"
    if cuda_was_touched():
        return "its imports initialized CUDA"
    return None


def cuda_was_touched() -> bool:
    """Whether this process has called the CUDA driver: its forks could not use a GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and (torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork()):
        return True
    try:  # only where something has loaded it
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != CUDA_NOT_INITIALIZED)


def main() -> int:
    """Import, then fork for each request until the starter is gone; in a fork, make the call."""
    parent = os.getppid()
    control = socket.socket(fileno=0)
    os.environ.update(WHILE_IMPORTING)
    import_libraries()
    for name in WHILE_IMPORTING:
        del os.environ[name]
    # OpenBLAS ends its threads before a fork; none is started again while nothing is computed.
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that holds an object
    reason = unsafe()
    control.send(reason.encode() if reason else READY)
    descriptors = _Server(control, parent).serve()
    return _call(*descriptors)


class _Server:
    """The loop of the server; `serve` returns in each fork, with the request's descriptors."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self.control, self.parent = control, parent
        self.children: dict[int, socket.socket] = {}
        self.kill_at: dict[int, float] = {}

    def serve(self) -> list[int]:
        while True:
            seconds = POLL_SECONDS if self.children else PARENT_POLL_SECONDS
            callers = [c for pid, c in self.children.items() if pid not in self.kill_at]
            readable, _, _ = select.select([self.control, *callers], [], [], seconds)
            # Not by the socket alone: a fork of the dead starter may hold it open.
            if os.getppid() != self.parent:
                _end()
            self._look_after_children(readable)
            if self.control in readable and (descriptors := self._fork()):
                return descriptors

    def _fork(self) -> list[int] | None:
        """Read a request and fork: the descriptors in the child, None here."""
        _, descriptors, _, _ = socket.recv_fds(self.control, 16, DESCRIPTORS)
        if len(descriptors) < DESCRIPTORS:
            _end()
        connection, *others = descriptors
        reason = unsafe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = 0 if reason else os.fork()
        if not reason and pid == 0:
            for inherited in self.children.values():
                inherited.close()
            self.control.detach()
            return descriptors
        for descriptor in others:
            os.close(descriptor)
        caller = socket.socket(fileno=connection)
        if reason:
            send(caller, refused=reason)
            caller.close()
        else:
            self.children[pid] = caller
        return None

    def _look_after_children(self, readable: list[Any]) -> None:
        for pid, caller in list(self.children.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                send(caller, pid=pid, status=os.waitstatus_to_exitcode(status))
                self.children.pop(pid).close()
                self.kill_at.pop(pid, None)
            elif pid in self.kill_at:
                if time.monotonic() > self.kill_at[pid]:
                    _signal_group(pid, signal.SIGKILL)
            elif caller in readable:  # closed: the caller no longer waits for it
                self.kill_at[pid] = time.monotonic() + GRACE_SECONDS
                _signal_group(pid, signal.SIGTERM)


def send(connection: socket.socket, **values: Any) -> None:
    """Send a line of JSON; a peer that is gone is no error."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(values).encode() + b"\n")


def _end() -> NoReturn:
    # At once, without finalizing torch: what it forked gets TERM when this process is gone.
    os._exit(0)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)  # it may not lead its group yet
        os.killpg(pid, number)


def _call(connection: int, call: int, log: int, lock: int, folder: int) -> int:
    """In a fork: become what a fresh interpreter would be, and make the call; its exit status."""
    server = os.getppid()
    os.setsid()
    empty = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((empty, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.set_inheritable(lock, True)
    os.fchdir(folder)
    for descriptor in (empty, log, folder):
        os.close(descriptor)
    with open(call, "rb") as file:
        request = json.load(file)
    if server != request["server"]:  # it ended before we could ask for TERM
        return 1
    os.environ.clear()
    os.environ.update(request["env"])
    _as_if_fresh()
    sys.argv = request["arguments"]
    _rename([sys.executable, "-P", "-m", *sys.argv, str(server)])
    with socket.socket(fileno=connection) as caller:
        send(caller, pid=os.getpid())
    module = importlib.import_module(sys.argv[0])
    return int(module.main(Path(sys.argv[1]), server))


def _as_if_fresh() -> None:
    """What a fresh interpreter has of its own. `random` and tempfile see to it themselves."""
    importlib.invalidate_caches()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    time.tzset()


def _rename(words: list[str]) -> None:
    """Show `words` as this process's command line, for ps and for people who look for a step."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end
        text = b"".join(os.fsencode(word) + b"\0" for word in words)[: end - start - 1]
        if start:
            ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    sys.exit(main())
