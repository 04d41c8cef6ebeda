"""The parts a conversation is made of: dice, people, options, reasons, facts, scenes."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_SENTENCE_START = re.compile(r"(^|[.?!] )[a-z]")
T = TypeVar("T")


class Dice:
    """Seeded chance from `random()` alone: the one method whose values no Python release changes."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def chance(self, share: float) -> bool:
        """True in `share` of all throws."""
        return self._random() < share

    def below(self, bound: int) -> int:
        """A whole number from 0 to `bound` - 1."""
        return int(self._random() * bound)

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items, in a random order."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(count)]


@dataclass(frozen=True)
class Person:
    """A speaker, with the pronouns that texts about them need."""

    name: str
    he: str
    him: str
    his: str

    def __str__(self) -> str:
        return self.name

    @property
    def names(self) -> str:
        """The possessive: Ben's, or my."""
        return "my" if self.name == "I" else f"{self.name}'s"

    @property
    def whom(self) -> str:
        """The name as an object: Ben, or me."""
        return "me" if self.name == "I" else self.name


ME = Person("I", "I", "me", "my")


@dataclass(frozen=True)
class Option:
    """A value that people settle on: as it is written down, and what they may call it."""

    tell: str
    says: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.tell


@dataclass(frozen=True)
class Reason:
    """Why something will not do; `{x}` is who objects. `says`: in words of their own."""

    now: str
    past: str
    says: tuple[str, ...]

    def told(self, template: str, key: str, named: bool = False) -> str:
        """`now` or `past` with the cast's `key` for x; `named`: by name at the first mention."""
        if named:
            template = template.replace("{x.he}", f"{{{key}}}", 1)
        return template.replace("{x.", f"{{{key}.")


@dataclass(frozen=True)
class Fact:
    """Something a conversation settled, for texts other than its summary."""

    label: str  # as in a list of notes
    value: str
    questions: tuple[str, ...]
    past: tuple[str, ...]  # templates over the cast in the past tense, where "I" fits as a subject


@dataclass(frozen=True)
class Scene:
    """A conversation with all that is known of it."""

    family: str
    combination: str  # what it came to: no two splits share one
    cast: dict[str, Person]
    speakers: tuple[str, ...]  # keys of the cast
    dialogue: str
    summary: str
    facts: tuple[Fact, ...]

    def seen_by(self, key: str | None) -> dict[str, Person | str]:
        """What templates are filled with when the person `key` (None: an outsider) writes."""
        names = [self.cast[k].name for k in self.speakers if k != key]
        names += ["I"] if key else []
        people = {k: ME if k == key else person for k, person in self.cast.items()}
        everyone = f"{', '.join(names[:-1])} and {names[-1]}"
        return {**people, "all": everyone, "they": "we" if key else "they"}


def sentence(template: str, values: dict[str, Person | str]) -> str:
    """The template filled in, with the first letter of each sentence large."""
    text = template.format(**values)
    return _SENTENCE_START.sub(lambda found: found[0].upper(), text)
