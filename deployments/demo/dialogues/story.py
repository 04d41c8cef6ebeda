"""A conversation as it grows: offers, objections, second thoughts, and who will do what.

What stands at the end often stood nowhere near the beginning: the first offer is turned down, an
agreement is undone later, or a wish to undo it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dialogues import forms
from dialogues.base import Dice, Fact, Option, Person, Reason, Scene, sentence
from dialogues.words import PEOPLE, REASONS

Event = Literal["agreed", "objected", "moved", "kept"]


@dataclass(frozen=True)
class Slot:
    """One thing to settle, and how to ask for it."""

    label: str
    options: Sequence[Option]
    reasons: str  # a group in reasons.txt
    asks: tuple[str, ...]
    question: str  # about the outcome


@dataclass(frozen=True)
class Outcome:
    """What was settled, by whose offer, and the last dispute about it."""

    slot: Slot
    value: Option
    by: str  # whose offer stands
    pair: tuple[str, str]  # who settle it
    event: Event = "agreed"
    other: Option | None = None  # what was dropped, or wished for in vain
    who: str = ""  # who objected
    wisher: str = ""  # whose offer or wish it was
    reason: Reason | None = None


class Story:
    """The conversation so far. Keys a, b, c name the speakers, r somebody they talk about."""

    def __init__(self, dice: Dice, speakers: str, slots: int, strangers: bool = False) -> None:
        self.dice = dice
        self.strangers = strangers
        self.speakers = tuple(speakers)
        self.cast = dict(
            zip((*speakers, "r", "n"), dice.sample(PEOPLE, len(speakers) + 2), strict=True)
        )
        self.turns: list[tuple[str, str]] = []
        self.outcomes: dict[str, Outcome] = {}
        self.facts: list[Fact] = []
        self._used: set[Reason] = set()
        self._chats: set[tuple[str, str]] = set()
        self._events = self._plan(slots)

    def _plan(self, slots: int) -> list[Event]:
        """Which slots are disputed, and how: one at least, two at most."""
        disputes: list[Event] = ["objected", "moved", "moved", "kept", "objected"]
        count = min(slots, 1 + self.dice.below(2))
        agreed: list[Event] = ["agreed"] * (slots - count)
        events = self.dice.sample(disputes, count) + agreed
        return self.dice.sample(events, slots)

    def say(self, who: str, *choices: str, **values: Option | str) -> None:
        """Let `who` say one of the choices; an option is spoken in one of its own forms."""
        spoken: dict[str, Person | str] = {**self.cast}
        for key, value in values.items():
            spoken[key] = self._spoken(value)
        text = sentence(self.dice.pick(choices), spoken)
        if self.turns and self.turns[-1][0] == who:
            text = f"{self.turns.pop()[1]} {text}"
        self.turns.append((who, text))

    def _spoken(self, value: Option | str) -> str:
        if isinstance(value, Option):
            return self.dice.pick(value.says or (value.tell,))
        return value.format(**self.cast)

    def fact(self, label: str, value: str, question: str, *past: str) -> None:
        """Note what was settled, for texts other than the summary; `past` are templates."""
        label, value, question = (part.format(**self.cast) for part in (label, value, question))
        self.facts.append(Fact(label, value, (question,) if question else (), past))

    def reason(self, group: str) -> Reason:
        """A reason that nobody has given yet."""
        found = self.dice.pick([r for r in REASONS[group] if r not in self._used])
        self._used.add(found)
        return found

    def chat(self, first: str, second: str) -> None:
        """Now and then, a word about something else; it names days and places that do not count."""
        if self.dice.chance(0.35):
            choices = forms.CHAT_OF_STRANGERS if self.strangers else forms.CHAT
            opening, answer = self.dice.pick([c for c in choices if c not in self._chats])
            self._chats.add((opening, answer))
            self.say(first, opening, **forms.chat_values(self.dice))
            self.say(second, answer)

    def settle(self, slot: Slot, first: str, second: str) -> Option:
        """Let two people agree on a value."""
        event = self._events.pop()
        rounds = 1 + self.dice.below(2) if event == "objected" else 0
        offers = self.dice.sample(slot.options, rounds + 1)
        if self.dice.chance(0.3):
            self.say(second, *slot.asks)
        self.say(first, *forms.OFFERS, v=offers[0])
        outcome = Outcome(slot, offers[0], first, (first, second))
        for offer in offers[1:]:
            outcome = self._object(outcome, offer, second if outcome.by == first else first)
        self._accept(outcome, second if outcome.by == first else first)
        # A later dispute is held over for `second_thoughts`.
        self.outcomes[slot.label] = (
            outcome if event == "objected" else replace(outcome, event=event)
        )
        return outcome.value

    def _object(self, outcome: Outcome, offer: Option, listener: str) -> Outcome:
        reason, old = self.reason(outcome.slot.reasons), outcome.value
        why = self.dice.pick(reason.says)
        by = listener
        if self.dice.chance(0.2):  # who offered it takes it back
            self.say(outcome.by, *forms.TAKE_BACK, why=why)
            listener = by = outcome.by
        else:
            self.say(listener, *forms.OBJECTIONS, v=old, why=why)
            if self.dice.chance(0.3):
                self.say(listener, *forms.PASSES)
                by = outcome.by
        self.say(by, *forms.COUNTERS, v=offer)
        return Outcome(
            outcome.slot, offer, by, outcome.pair, "objected", old, listener, outcome.by, reason
        )

    def _accept(self, outcome: Outcome, listener: str) -> None:
        self.say(listener, *forms.ACCEPTS, v=outcome.value)

    def second_thoughts(self) -> None:
        """Hold the disputes that were held over."""
        for label, outcome in list(self.outcomes.items()):
            if outcome.event in ("moved", "kept"):
                people = self.dice.sample(outcome.pair, 2)
                if people[0] == self.turns[-1][0]:  # nobody goes back on a word just spoken
                    people.reverse()
                act = self._move if outcome.event == "moved" else self._keep
                self.outcomes[label] = act(outcome, people[0], people[1])

    def _another(self, outcome: Outcome) -> Option:
        return self.dice.pick([o for o in outcome.slot.options if o != outcome.value])

    def _move(self, outcome: Outcome, mover: str, listener: str) -> Outcome:
        reason, new, old = self.reason(outcome.slot.reasons), self._another(outcome), outcome.value
        self.say(mover, *forms.UNDO, v=old, why=self.dice.pick(reason.says))
        by = mover
        if self.dice.chance(0.4):
            self.say(listener, *forms.SYMPATHY)
            by = listener
        self.say(by, *forms.COUNTERS, v=new)
        found = replace(
            outcome, value=new, by=by, other=old, who=mover, wisher=outcome.by, reason=reason
        )
        self._accept(found, listener if by == mover else mover)
        return found

    def _keep(self, outcome: Outcome, wisher: str, listener: str) -> Outcome:
        reason, new = self.reason(outcome.slot.reasons), self._another(outcome)
        self.say(wisher, *forms.WISHES, v=new, old=outcome.value)
        self.say(listener, *forms.REFUSALS, v=new, why=self.dice.pick(reason.says))
        self.say(wisher, *forms.KEEPS, v=outcome.value)
        return replace(outcome, other=new, who=listener, wisher=wisher, reason=reason)

    def duty(self, one: str, two: str, tell: str, ask: str, offer: str) -> str:
        """Let one of two take on a job; the summary's sentence about it (a template)."""
        how = self.dice.below(3)
        doer, other, because = (one, two, "") if how == 0 else (two, one, "")
        if how == 0:
            self.say(one, *forms.JOB_OFFERS, job=offer)
            self.say(two, *forms.THANKS)
        else:
            self.say(one, *forms.JOB_ASKS, job=ask)
        if how == 1:
            self.say(two, *forms.JOB_YES)
        elif how == 2:
            reason = self.reason("cannot")
            self.say(two, *forms.JOB_NO, why=self.dice.pick(reason.says))
            self.say(one, *forms.JOB_BACK)
            doer, other, because = one, two, reason.told(reason.now, two, named=True)
            self.facts.append(forms.excuse_fact(reason, one, two))
        job = tell.replace("{y.", f"{{{other}.")
        self.facts.append(forms.duty_fact(self.cast, doer, job))
        return f"{{{doer}}} will {job}" + (f" because {because}." if because else ".")

    def dispute(self) -> str:
        """The summary's sentence about the dispute that mattered most (a template), or nothing."""
        rank = {"moved": 3, "kept": 2, "objected": 1, "agreed": 0}
        worst = max(self.outcomes.values(), key=lambda outcome: rank[outcome.event])
        return forms.dispute(worst)

    def scene(self, family: str, summary: list[str], *more: str) -> Scene:
        """The finished scene. `more`: facts beside the outcomes that tell it from others."""
        values = [o.value.tell for o in self.outcomes.values()]
        facts = [f for o in self.outcomes.values() for f in forms.outcome_facts(self.cast, o)]
        people = {**self.cast}
        return Scene(
            family=family,
            combination="|".join([family, *values, *more]),
            cast=self.cast,
            speakers=self.speakers,
            dialogue="\n".join(f"{self.cast[who]}: {text}" for who, text in self.turns),
            summary=" ".join(sentence(part, people) for part in summary if part),
            facts=(*facts, *self.facts),
        )
