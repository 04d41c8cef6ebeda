"""The course of every trial: the fault, a look, what precis tells to do, the retry, and the last look."""

from __future__ import annotations

import random
from dataclasses import dataclass

import tiny_run
from checker import Checker
from home import Ended, Home
from striking import Fault, Struck


@dataclass(frozen=True)
class Told:
    """What a trial met, in words, and what did not hold."""

    moment: str
    landed: str
    outcome: str
    violations: tuple[str, ...]


def tell(fault: Fault, home: Home, rng: random.Random) -> Told:
    """Run one trial in `home`."""
    before = home.settled()
    struck = fault.strike(home, rng)
    checker = Checker(home, before, struck.changes)
    _ended(struck, checker)
    checker.after_the_fault()
    aged = rng.random() < 0.5  # the retry comes a day later: it finds what was left, and removes it
    if aged:
        home.age()
    retry = _retry(struck, home, checker)
    verdict = retry.outcome.get("verdict", f"exit {retry.code}")
    checker.holds(retry.code == 0, f"the retry ended with {retry.code}: {retry.err[-600:]}")
    registry = checker.at_the_end(aged)
    if not struck.changes.deleted and not struck.changes.aliases:
        checker.holds(
            registry.alias not in (None, before.alias),
            f"the better model was not promoted: {registry}",
        )
    codes = ", ".join(
        str(ended.outcome.get("verdict", f"exit {ended.code}")) for ended in struck.ended
    )
    outcome = f"{codes}; then{' a day later' if aged else ''} {verdict}; {registry}"
    return Told(struck.moment, struck.landed, outcome, tuple(checker.violations))


def _ended(struck: Struck, checker: Checker) -> None:
    """A command that was not killed ends with a status and in words, not with a traceback."""
    for ended in struck.ended:
        checker.holds(ended.code != 124, f"it did not end: {ended.err[-600:]}")
        if not struck.killed:
            checker.holds(
                "Traceback (most recent call last)" not in ended.err,
                f"a traceback: {ended.err[-1200:]}",
            )
            checker.holds(ended.code in (0, 1), f"exit status {ended.code}: {ended.err[-600:]}")


def _retry(struck: Struck, home: Home, checker: Checker) -> Ended:
    """The same command again; before it what the fault's own hand calls for, as precis tells it."""
    words = tiny_run.words(struck.settings)
    retry = home.run(words)
    for _ in range(2):
        if retry.code == 0 or not struck.changes.aliases:
            break
        command = _told_command(retry.err)
        checker.holds(command is not None, f"no way out is told: {retry.err[-600:]}")
        if command is None:
            break
        done = home.run(command)
        checker.holds(done.code == 0, f"{command} ended with {done.code}: {done.err[-600:]}")
        retry = home.run(words)
    return retry


def _told_command(text: str) -> list[str] | None:
    """The last `precis rollback ...` that an error tells to give: the one that undoes a hand's move."""
    import re

    found = re.findall(r"`precis (rollback \S+ --to \d+)`", text)
    return found[-1].split() if found else None
