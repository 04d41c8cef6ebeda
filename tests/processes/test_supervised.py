"""A command that ends with the process that started it, and all of its descendants too."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.processes import supervised

# A command with a child in another session, as a worker's trainer is; both write down who they are.
FAMILY = """
import os, subprocess, sys, time
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session={new_session})
open({pids!r}, "w").write(f"{{os.getpid()}} {{below.pid}}\\n")
{then}
"""
STARTER = """
import sys, time
from pathlib import Path
from tasks.processes import supervised
supervised.start([sys.executable, "-c", {command!r}], Path({log!r}))
time.sleep(600)
"""
WAIT = "print('the orphan is alone', flush=True); time.sleep(600)"


def family(tmp_path: Path, then: str = "time.sleep(600)", new_session: bool = True) -> str:
    return FAMILY.format(pids=str(tmp_path / "pids"), then=then, new_session=new_session)


def started(tmp_path: Path) -> list[psutil.Process]:
    """Command and child, once both run."""
    end = time.monotonic() + 30
    path = tmp_path / "pids"
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < end, "it did not start"
        time.sleep(0.05)
    found = []
    for pid in path.read_text().split():
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended already
            found.append(psutil.Process(int(pid)))
    return found


def gone(processes: list[psutil.Process]) -> bool:
    _, left = psutil.wait_procs(processes, timeout=15)
    return not left


def test_kill_9_of_the_starter_ends_the_command_and_all_below_it(tmp_path: Path) -> None:
    """Nobody is left to stop it, and yet it stops."""
    words = STARTER.format(command=family(tmp_path), log=str(tmp_path / "log"))
    starter = subprocess.Popen([sys.executable, "-c", words])
    processes = started(tmp_path)
    starter.kill()
    starter.wait()
    assert gone(processes)


def test_stop_ends_the_command_and_a_child_in_another_session(tmp_path: Path) -> None:
    """TERM to each; none is left when stop returns."""
    process = supervised.start([sys.executable, "-c", family(tmp_path)], tmp_path / "log")
    processes = started(tmp_path)
    supervised.stop(process)
    assert gone(processes)


def test_what_an_ended_command_leaves_in_its_group_ends_too(tmp_path: Path) -> None:
    """A shell that ends before what it put into the background."""
    words = [sys.executable, "-c", family(tmp_path, then="", new_session=False)]
    process = supervised.start(words, tmp_path / "log")
    processes = started(tmp_path)
    assert process.wait(30) == 0
    assert gone(processes)
    supervised.stop(process)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of others knows no such adoption")
def test_kill_9_of_the_command_ends_a_child_in_another_session(tmp_path: Path) -> None:
    """As a killed worker leaves its flows; the supervising process ends with it, with a status of its own."""
    process = supervised.start([sys.executable, "-c", family(tmp_path)], tmp_path / "log")
    command, below = started(tmp_path)
    command.kill()
    assert process.wait(30) != 0
    assert gone([command, below])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of others sends no such signal")
def test_kill_9_of_the_supervising_process_ends_the_command(tmp_path: Path) -> None:
    """The command gets TERM, as from a user, and ends what is below it by itself."""
    then = "import signal; signal.sigwait({signal.SIGTERM}); below.kill()"
    words = family(tmp_path, then=f"{then}; below.wait()").replace(
        "import os,", "import signal; signal.pthread_sigmask(0, {signal.SIGTERM}); import os,"
    )
    process = supervised.start([sys.executable, "-c", words], tmp_path / "log")
    processes = started(tmp_path)
    process.kill()
    process.wait()
    assert gone(processes)


def test_orphans_that_end_are_not_left_as_zombies(tmp_path: Path) -> None:
    """A worker lives for months: what it leaves behind and has ended is reaped meanwhile."""
    orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'pass'])"
    words = family(tmp_path, then=f"subprocess.run([sys.executable, '-c', {orphan!r}]); {WAIT}")
    process = supervised.start([sys.executable, "-c", words], tmp_path / "log")
    started(tmp_path)
    end = time.monotonic() + 30
    while "orphan" not in (tmp_path / "log").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.5)  # the orphan's end, which nothing else tells of
    states = [p.status() for p in psutil.Process(process.pid).children(recursive=True)]
    assert len(states) == 2, states
    assert psutil.STATUS_ZOMBIE not in states
    supervised.stop(process)


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_status_is_the_commands(tmp_path: Path, code: int) -> None:
    """And its output is in the log."""
    words = [sys.executable, "-c", f"print('output'); raise SystemExit({code})"]
    process = supervised.start(words, tmp_path / "log")
    assert process.wait(30) == code
    supervised.stop(process)
    assert (tmp_path / "log").read_text() == "output\n"
