"""A step's own process: answers, errors, ends; real processes throughout, fresh and forked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.contracts.errors import ChildFailed, DataError, TrainingError
from tasks.processes import step_process


# What the children run: `tests/` is on their path through PYTHONPATH.
def double(value: int) -> int:
    for done in range(3):
        step_process.report(done=done)
    return 2 * value


def complain() -> None:
    raise DataError("rows.jsonl:3 has no summary; add one")


def vanish() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def linger(pid_file: str) -> None:
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(pid_file).write_text(f"{os.getpid()} {helper.pid}")
    time.sleep(600)


@pytest.fixture(autouse=True)
def light(light_libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{light_libraries}")


@pytest.fixture(params=[True, False], ids=["fresh", "forked"])
def fresh(request: pytest.FixtureRequest) -> bool:
    """Whether steps run in a fresh interpreter; else they are forked."""
    return bool(request.param)


def test_the_answer_and_the_progress_come_back(tmp_path: Path, fresh: bool) -> None:
    """Result and every progress line reach the parent, in order."""
    seen: list[dict[str, Any]] = []
    assert (
        step_process.run(
            "test_step_process:double",
            {"value": 21},
            tmp_path,
            on_progress=seen.append,
            fresh=fresh,
        )
        == 42
    )
    assert seen == [{"done": 0}, {"done": 1}, {"done": 2}]


def test_an_error_of_ours_comes_back_as_itself(tmp_path: Path, fresh: bool) -> None:
    """A PrecisError crosses the process border with its class and words."""
    with pytest.raises(DataError, match="has no summary"):
        step_process.run("test_step_process:complain", {}, tmp_path, fresh=fresh)


def test_a_killed_child_is_named_with_its_signal_and_log(tmp_path: Path, fresh: bool) -> None:
    """Out of memory looks like SIGKILL: the error says so and where the log is."""
    with pytest.raises(ChildFailed, match=r"SIGKILL \(out of memory\?\).*log\.txt"):
        step_process.run("test_step_process:vanish", {}, tmp_path, fresh=fresh)


def test_a_timeout_ends_the_whole_group(tmp_path: Path, fresh: bool) -> None:
    """Past the limit neither the child nor what it started lives on."""
    pids = tmp_path / "pids"
    with pytest.raises(TrainingError, match="no answer within"):
        step_process.run(
            "test_step_process:linger",
            {"pid_file": str(pids)},
            tmp_path,
            timeout_seconds=3,
            fresh=fresh,
        )
    assert not any(
        psutil.pid_exists(int(pid)) and alive(int(pid)) for pid in pids.read_text().split()
    )


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(what: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_child_dies_with_its_killed_parent_and_locks_its_folder_until_then(
    tmp_path: Path, fresh: bool
) -> None:
    """kill -9 of the parent ends the child; while it lives a second one is refused."""
    pids = tmp_path / "pids"
    script = (
        "import sys; from pathlib import Path; from tasks.processes import step_process\n"
        "step_process.run('test_step_process:linger', {'pid_file': sys.argv[2]}, Path(sys.argv[1]),"
        f" fresh={fresh})"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "job"), str(pids)])
    wait_for(lambda: pids.exists() and pids.read_text())
    with pytest.raises(TrainingError, match="in use by another run"):
        step_process.run("test_step_process:double", {"value": 1}, tmp_path / "job", fresh=fresh)
    family = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
    parent.kill()
    parent.wait()
    trainer, helper = map(int, pids.read_text().split())
    wait_for(lambda: not alive(trainer))
    os.kill(helper, signal.SIGKILL)  # the child's own children are its own business
    wait_for(lambda: _free(tmp_path / "job"))
    wait_for(lambda: not [child for child in family if alive(child)])
    again = step_process.run(
        "test_step_process:double", {"value": 1}, tmp_path / "job", fresh=fresh
    )
    assert again == 2


def _free(folder: Path) -> bool:
    try:
        step_process.run("test_step_process:double", {"value": 1}, folder, fresh=True)
    except TrainingError:
        return False
    return True
