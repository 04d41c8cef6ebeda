"""The faults of one machine: kills, a full disk, a clock that jumps."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import moments
import psutil
from home import Home, Process
from moments import Moment
from striking import Struck, begin, challenger

DISK_MIB = 96

Targets = Callable[[Home, Process], list[psutil.Process]]


def _with(word: str) -> Targets:
    def find(home: Home, _: Process) -> list[psutil.Process]:
        found = []
        for process in home.processes():
            with contextlib.suppress(psutil.Error):
                if word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    return find


def _flow(_: Home, process: Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [psutil.Process(process.pid)]
    return []


def _fork_server(home: Home, process: Process) -> list[psutil.Process]:
    """In a warm run a fork of it: the parent of the steps, or a child that leads a session."""
    found = [p for p in home.processes() if p.pid != process.pid and _leads_as_warm(p)]
    return found or _with("tasks.processes.fork_server")(home, process)


def _leads_as_warm(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        return os.getsid(process.pid) == process.pid and any(
            word.endswith("warm.py") for word in process.cmdline()
        )
    return False


TARGETS: dict[str, Targets] = {
    "flow": _flow,
    "step": _with("tasks.processes.step_process"),
    "fork server": _fork_server,
    "Prefect server": _with("uvicorn"),
    "all at once": lambda home, _: home.processes(),
}
STEP_EVENTS = ("ingested", "first step", "checkpoint", "trained", "merged", "champion evaluated",
               "clean process")  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """kill -9 of one process of the run, or of all of them at once, as by a power cut."""

    target: str

    @property
    def name(self) -> str:
        return f"kill -9: {self.target}"

    def strike(self, home: Home, rng: random.Random) -> Struck:
        events = STEP_EVENTS if self.target == "step" else tuple(moments.EVENTS)
        moment = moments.drawn(rng, events)
        settings = challenger(rng, moment)
        process, log, watch, met = begin(home, settings, moment)
        hit = []
        if met:
            found = TARGETS[self.target](home, process)
            while not found and self.target in ("step", "fork server") and process.poll() is None:
                found = TARGETS[self.target](home, process)  # between two steps: the next one
            for victim in found:
                with contextlib.suppress(psutil.Error):
                    victim.send_signal(signal.SIGKILL)
                    hit.append(victim.pid)
        landed = moments.place(watch) if hit else "not met: the run had ended"
        ended = home.wait(process, log)
        return Struck(str(moment), landed, [ended], settings=settings, killed=bool(hit))


@dataclass(frozen=True)
class DiskFull:
    """The disk that holds the store and the work folder, a small tmpfs, is full from a moment on."""

    during: str
    event: str

    @property
    def name(self) -> str:
        return f"disk full: {self.during}"

    def strike(self, home: Home, rng: random.Random) -> Struck:
        delay = 0.0 if rng.random() < 0.5 else round(rng.uniform(0, 0.6), 3)
        moment = Moment(self.event, delay)
        settings = challenger(rng, moment)
        with small_disk(home.store) as fill:
            process, log, watch, met = begin(home, settings, moment)
            if met:
                fill()
            landed = moments.place(watch) if met else "not met: the run had ended"
            ended = home.wait(process, log)
        return Struck(str(moment), landed, [ended], settings=settings)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[], None]]:
    """`folder` on a tmpfs of DISK_MIB; what is yielded fills it. At the end it is a plain folder again."""
    aside = folder.with_name(f"{folder.name}.aside")
    folder.rename(aside)
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    subprocess.run(["cp", "-a", f"{aside}/.", str(folder)], check=True)
    ballast = folder / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as out:
            for size in (2**20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        out.write(b"\0" * size)

    try:
        yield fill
    finally:
        ballast.unlink(missing_ok=True)
        subprocess.run(["rm", "-rf", str(aside)], check=True)
        subprocess.run(["cp", "-a", str(folder), str(aside)], check=True)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()
        aside.rename(folder)


@dataclass(frozen=True)
class ClockJump:
    """The clock of all processes of the run jumps by `hours` in mid-run; the retry has the true time."""

    hours: int

    @property
    def name(self) -> str:
        return f"clock jumps by {self.hours:+d} h"

    def strike(self, home: Home, rng: random.Random) -> Struck:
        moment = moments.drawn(rng)
        settings = challenger(rng, moment)
        clock = home.folder / "clock"
        clock.write_bytes(struct.pack("l", 0))
        own = dict(home.env)
        home.env |= {"LD_PRELOAD": str(_library(home)), "PRECIS_CLOCK_FILE": str(clock)}
        process, log, watch, met = begin(home, settings, moment, real=True)
        with clock.open("r+b") as mapped:  # in place: the processes have mapped it
            mapped.write(struct.pack("l", self.hours * 3600))
        landed = moments.place(watch) if met else "not met: the run had ended"
        ended = home.wait(process, log)
        home.env = own
        return Struck(str(moment), landed, [ended], settings=settings)


def _library(home: Home) -> Path:
    """clock.c, compiled; PRECIS_CLOCK names one that was compiled before."""
    if ready := os.environ.get("PRECIS_CLOCK"):
        return Path(ready)
    library = home.folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return library
