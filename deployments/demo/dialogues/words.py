"""The words that conversations draw on, read from `words.txt` and `reasons.txt` beside this file."""

from __future__ import annotations

from pathlib import Path

from dialogues.base import Option, Person, Reason


def _groups(name: str) -> dict[str, list[str]]:
    """Lines under each [heading] of a file; comments and blank lines left out."""
    groups: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (Path(__file__).with_name(name)).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            lines = groups.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return groups


def _columns(line: str) -> list[str]:
    return [column.strip() for column in line.split("|")]


def _list(group: str) -> list[str]:
    """A group of words separated by commas."""
    return [word.strip() for line in _WORDS[group] for word in line.split(",")]


def _plain(group: str) -> tuple[Option, ...]:
    return tuple(Option(word) for word in _list(group))


def _spoken(group: str) -> tuple[Option, ...]:
    rows = [_columns(line) for line in _WORDS[group]]
    return tuple(Option(tell, tuple(says)) for tell, *says in rows)


def _times(first: int, last: int) -> tuple[Option, ...]:
    """Quarter hours from `first` to `last` o'clock; spoken in words, written in figures."""
    names = ["twelve", *"one two three four five six seven eight nine ten eleven".split()]  # noqa: SIM905
    found = []
    for hour in range(first, last):
        name, after, figure = names[hour % 12], names[(hour + 1) % 12], (hour - 1) % 12 + 1
        found += [
            Option(f"{figure}:00", (f"{name} o'clock", f"{name} sharp")),
            Option(f"{figure}:15", (f"quarter past {name}", f"{name} fifteen")),
            Option(f"{figure}:30", (f"half past {name}", f"{name} thirty")),
            Option(f"{figure}:45", (f"quarter to {after}", f"{name} forty-five")),
        ]
    return tuple(found)


_WORDS = _groups("words.txt")

PEOPLE = (
    *(Person(name, "she", "her", "her") for name in _list("women")),
    *(Person(name, "he", "him", "his") for name in _list("men")),
)
DAYS, TOWNS, DISHES = _plain("days"), _plain("towns"), _plain("dishes")
TO_BRING, GIFTS, TASKS = _plain("to bring"), _plain("gifts"), _plain("tasks")
PLACES = tuple(Option(f"the {kind} {sign}") for kind in _list("kinds") for sign in _list("signs"))
TRANSPORT, OCCASIONS, ROOMS = _spoken("transport"), _spoken("occasions"), _spoken("rooms")
ITEMS = tuple(_list("items"))
FAVOURS = tuple(tuple(_columns(line)) for line in _WORDS["favours"])
THANKS = tuple(tuple(_columns(line)) for line in _WORDS["thanks"])
DUTIES = tuple(tuple(_columns(line)) for line in _WORDS["duties"])
MEALS = {
    "breakfast": _times(8, 11),
    "lunch": _times(12, 14),
    "coffee": _times(14, 18),
    "dinner": _times(18, 21),
}
TIMES = _times(14, 20)
REASONS = {
    group: tuple(
        Reason(now, past, tuple(says)) for now, past, *says in (_columns(line) for line in lines)
    )
    for group, lines in _groups("reasons.txt").items()
}
