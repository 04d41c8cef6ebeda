"""Text to pretrain the base on: conversations followed by what people wrote of them afterwards.

Diaries, letters, gossip, notes, questions with answers: all in other words and another tense than
the summaries, and never after a request to summarize. What the base can learn here is to follow a
conversation; what a summary looks like is left to the fine-tune.
"""

from __future__ import annotations

from collections.abc import Callable

from dialogues.base import Dice, Fact, Scene, sentence
from dialogues.words import DAYS, PEOPLE

INTROS = (
    "",
    "",
    "",
    "Overheard on the bus.",
    "A recording from last spring.",
    "Tape {n}, side B.",
    "Somewhere in town, {day}.",
    "From a play in one act.",
    "Chapter {n}.",
    "The following was said on a {day}.",
)
MUSINGS = (
    "It was a long day.",
    "Time for bed now.",
    "The cat is asleep beside me.",
    "I must buy milk.",
    "Outside it was raining.",
    "That was all.",
    "More tomorrow.",
    "So that was that.",
    "People are funny.",
)


def passage(dice: Dice, scene: Scene, next_scene: Scene) -> str:
    """The conversation, mostly followed by something written about it, else by another one."""
    intro = dice.pick(INTROS).format(n=1 + dice.below(40), day=dice.pick(DAYS))
    parts = [intro, scene.dialogue] if intro else [scene.dialogue]
    parts.append(next_scene.dialogue if dice.chance(0.35) else dice.pick(RECAPS)(dice, scene))
    return "\n\n".join(parts)


def _shuffled(dice: Dice, scene: Scene) -> list[Fact]:
    return dice.sample(scene.facts, len(scene.facts))


def _told(dice: Dice, scene: Scene, writer: str | None) -> list[str]:
    """The facts in past sentences from the writer's side, with a musing here or there."""
    view = scene.seen_by(writer)
    lines = [sentence(dice.pick(fact.past), view) for fact in _shuffled(dice, scene)]
    if dice.chance(0.4):
        lines.insert(dice.below(len(lines) + 1), dice.pick(MUSINGS))
    return lines


def diary(dice: Dice, scene: Scene) -> str:
    """A speaker's diary."""
    key = dice.pick(scene.speakers)
    name = scene.cast[key].name
    head = dice.pick(
        (f"{name}'s diary:", f"In the evening {name} wrote:", f"Dear diary, {name} again.")
    )
    return head + "\n" + " ".join(_told(dice, scene, key))


def letter(dice: Dice, scene: Scene) -> str:
    """A speaker's letter to a friend."""
    key = dice.pick(scene.speakers)
    friend = dice.pick(PEOPLE).name
    head = dice.pick((f"Dear {friend},", f"Hello {friend},", f"To: {friend}"))
    return "\n".join([head, " ".join(_told(dice, scene, key)), f"Yours, {scene.cast[key]}"])


def gossip(dice: Dice, scene: Scene) -> str:
    """What somebody else told of it."""
    friend = dice.pick(PEOPLE).name
    head = dice.pick(
        (f"{friend} heard it all:", f"Later {friend} told the story:", "What had happened?")
    )
    return head + " " + " ".join(_told(dice, scene, None))


def notes(dice: Dice, scene: Scene) -> str:
    """A list of what is now settled."""
    lines = [f"{fact.label}: {fact.value}" for fact in _shuffled(dice, scene) if fact.value]
    return "\n".join([dice.pick(("To remember", "Notes", "On a slip of paper")), *lines])


def questions(dice: Dice, scene: Scene) -> str:
    """Questions about it, with answers."""
    lines = []
    for fact in _shuffled(dice, scene):
        if fact.questions:
            question = dice.pick(fact.questions).format(**scene.cast)
            lines.append(f"- {question} {sentence(fact.value, {})}.")
    return "\n".join([dice.pick(("A small quiz", "Who was listening?", "Questions")), *lines])


RECAPS: tuple[Callable[[Dice, Scene], str], ...] = (
    diary,
    letter,
    gossip,
    gossip,
    notes,
    questions,
    questions,
)
