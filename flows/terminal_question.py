"""Ask the person at the terminal whether a challenger may be promoted.

On standard error, since standard output holds the decision. Lines are read one by one: a person who ends
the input (Ctrl-D) has approved nothing.
"""

from __future__ import annotations

import contextlib
import getpass
import sys
from typing import IO

from flows.approval_form import (
    BY_PAIRS,
    MOST_COMMENT_CHARACTERS,
    MOST_NAME_CHARACTERS,
    problem_of,
)

DECISIONS = {"a": "approve", "r": "refuse", "p": BY_PAIRS}


def is_possible() -> bool:
    """Whether a person reads what is written here, and can answer."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def say(text: str) -> None:
    """A line for the person."""
    print(text, file=sys.stderr, flush=True)


def ask(text: str, pairs: int, answers: IO[str] | None = None) -> dict[str, str]:
    """The form's values: decision, approved_by, comment, preferred. `answers`: default standard input.

    Asks again for what is missing or cannot be used. The end of the input is a refusal that says so.
    """
    lines = answers or sys.stdin
    say(f"\n{text}\n")
    try:
        while problem := problem_of(**(answer := _answer(lines, pairs)), pairs=pairs):
            say(f"{problem}\n")
        return answer | {"comment": _line(lines, "comment, or empty: ")[:MOST_COMMENT_CHARACTERS]}
    except EOFError:
        ended = {"comment": "the input ended without an answer", "preferred": ""}
        return {"decision": "refuse", "approved_by": _user(), **ended}


def _answer(lines: IO[str], pairs: int) -> dict[str, str]:
    """All but the comment."""
    preferred = ""
    if pairs:
        preferred = _line(
            lines, f"the better one of each of {pairs} blind pairs (A, B or =), or empty: "
        )
    letter = ""
    while letter not in DECISIONS:
        letter = _line(lines, "[a]pprove, [r]efuse, or as the [p]airs say: ").lower()[:1]
    user = _user()
    name = (_line(lines, f"your name [{user}]: ") or user)[:MOST_NAME_CHARACTERS]
    return {"decision": DECISIONS[letter], "approved_by": name, "preferred": preferred}


def _user() -> str:
    with contextlib.suppress(KeyError, OSError):  # a container whose user has no name
        user = getpass.getuser()
        if not problem_of("refuse", user, "", 0):
            return user
    return "the person at the terminal"


def _line(lines: IO[str], question: str) -> str:
    print(question, end="", file=sys.stderr, flush=True)
    line = lines.readline()
    if not line:
        say("")
        raise EOFError
    return line.strip()
