"""How the `precis` command ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENDING = """
import atexit, sys
import flows.cli.parser
from flows.cli.entry import console

def main(argv):
    atexit.register(lambda: print("all that waits for the end", flush=False))
    {how}

flows.cli.parser.main = main
sys.exit(console())
"""


def ended(how: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", ENDING.format(how=how)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_status_is_given_once_all_else_has_ended() -> None:
    """What registered to be called at the end is called, what was printed is out."""
    assert ended("return 3") == (3, "all that waits for the end\n", "")


def test_an_exit_and_a_crash_are_what_they_are_elsewhere() -> None:
    """SystemExit keeps its status, an unforeseen error its traceback and status 1."""
    assert ended("sys.exit(143)")[0] == 143
    status, _, said = ended("raise ValueError('unforeseen')")
    assert status == 1
    assert "ValueError: unforeseen" in said
