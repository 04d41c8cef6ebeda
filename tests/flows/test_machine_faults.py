"""`precis` where the machine refuses: a closed pipe, a full disk, a folder that may not be written to."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli.app import app
from tasks.contracts import machine_faults
from tasks.contracts.errors import PrecisError

ROOT = Path(__file__).parents[2]
PRECIS = Path(sys.executable).parent / "precis"
# Each command line as a child of one process that has imported the command; standard output is a pipe
# that nobody reads.
EACH_INTO_A_CLOSED_PIPE = """
import os, sys
from flows.cli import app, entry
for words in [line.split() for line in sys.argv[1:]]:
    child = os.fork()
    if child == 0:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
        sys.argv[1:] = words
        sys.exit(entry.console())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
# As root of a namespace of its own: the folder is really read-only, or really full.
READ_ONLY = "mount --bind . . && mount -o remount,ro,bind . && cd $PWD && exec $0 $@"
FULL = "mount -t tmpfs -o size=1m tmpfs . && cd $PWD && { cat /dev/zero > fill; exec $0 $@; }"


def test_a_closed_pipe_ends_every_command_without_a_word() -> None:
    """`precis VERB | head`: no BrokenPipeError, neither of a write nor of Python's flush at its end."""
    verbs = [str(command.callback.__name__).replace("_", "-") for command in app.registered_commands
             if command.callback]  # fmt: skip
    lines = ["--help", *(f"{verb} --help" for verb in verbs)]
    words = [sys.executable, "-c", EACH_INTO_A_CLOSED_PIPE, *lines]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert {int(line) for line in done.stdout.split()} <= {1, 141}
    assert len(done.stdout.split()) == len(verbs) + 1 >= 17


@pytest.mark.long  # mounts: where a user may make no namespace it cannot run
def test_a_full_disk_under_standard_output_is_named(tmp_path: Path) -> None:
    """`precis ... > file`, on another disk than the folder's."""
    mount = "mkdir sub && mount -t tmpfs -o size=1m tmpfs sub && "
    mount += "{ cat /dev/zero > sub/fill; exec $0 $@ > sub/out; }"
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, PRECIS, "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        f"no space is left on the disk of {tmp_path}/sub/out (on {tmp_path}/sub, 0.0 MiB free"
        in done.stderr
    )


@pytest.mark.parametrize(
    ("verb", "mount", "messages"),
    [
        (
            f"run {ROOT}/deployments/recipes/demo.yaml",
            READ_ONLY,
            ["mlruns", "Read-only file system", "run in a folder that may be written to"],
        ),
        (
            "up --port 4911 --mlflow-port 4912",
            FULL,
            ["no space is left on the disk of", "0.0 MiB free of 1)", "free some space"],
        ),
    ],
    ids=["read-only", "full"],
)
@pytest.mark.long  # mounts, as above
def test_a_folder_that_takes_nothing_is_named(
    tmp_path: Path, verb: str, mount: str, messages: list[str]
) -> None:
    """One sentence with the folder or disk and what to do, and no traceback."""
    home = tmp_path / "home"
    home.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, PRECIS, *verb.split()],
        cwd=home, env=env | {"PREFECT_HOME": str(tmp_path / "prefect")}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    for message in [*messages, str(home)]:
        assert message in done.stderr


def test_an_error_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    """Of errors on the way to another, only those that it came from count."""
    with pytest.raises(FileNotFoundError), machine_faults.as_errors():
        (tmp_path / "none").read_text()
    with pytest.raises(PrecisError, match="Permission denied"), machine_faults.as_errors():
        fail_after(OSError(errno.EACCES, "Permission denied", "a.txt"), it_is_why=True)
    with pytest.raises(RuntimeError, match="another"), machine_faults.as_errors():
        fail_after(OSError(errno.ENOSPC, "full"), it_is_why=False)


def fail_after(first: OSError, *, it_is_why: bool) -> None:
    """Raise another error while `first` is handled."""
    try:
        raise first
    except OSError as error:
        raise RuntimeError("another") from (error if it_is_why else None)
