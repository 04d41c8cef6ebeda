"""The words for what happens in any conversation, and for telling of it afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialogues.base import Dice, Fact, Option, Person, Reason
from dialogues.words import DAYS, PLACES, TOWNS

if TYPE_CHECKING:
    from dialogues.story import Outcome

OFFERS = (
    "How about {v}?",
    "What about {v}?",
    "I was thinking of {v}.",
    "Maybe {v}?",
    "Shall we say {v}?",
    "My first choice would be {v}.",
    "I'd suggest {v}.",
    "Would {v} be all right?",
)
COUNTERS = (
    "How about {v} instead?",
    "Could it be {v}?",
    "What would you say to {v}?",
    "Better {v}.",
    "I'd prefer {v}.",
    "Let's take {v}.",
    "Why not {v}?",
)
OBJECTIONS = (
    "Not {v}, {why}.",
    "No, {why}.",
    "I'm afraid {v} won't do, {why}.",
    "Hmm, {why}, so not {v}.",
    "That's bad, {why}.",
    "Sorry, but {why}.",
    "I'd rather not, {why}.",
)
TAKE_BACK = ("No, wait, {why}.", "Oh, hang on, {why}.", "Actually, no, {why}.", "Ah, but {why}.")
PASSES = ("Any other idea?", "What else could we do?", "Do you have something better?")
ACCEPTS = (
    "Fine.",
    "Good, {v} then.",
    "That works.",
    "Perfect.",
    "All right, {v} it is.",
    "Yes, why not.",
    "I'm happy with that.",
    "Sounds good to me.",
    "Agreed.",
)
UNDO = (
    "Oh dear, about {v}: {why}.",
    "I've just remembered something: {why}. So {v} is off.",
    "Wait, {v} won't do after all, {why}.",
    "Sorry, I have to come back to {v}: {why}.",
    "How stupid of me, we can't have {v}, {why}.",
)
SYMPATHY = ("Oh, I see.", "No problem.", "That's a pity.", "Well, it can't be helped.")
WISHES = (
    "Thinking about it, wouldn't {v} be nicer than {old}?",
    "Could we still change {old} to {v}?",
    "One more thought: {v} instead of {old}?",
    "I'm not sure about {old}. Isn't {v} better?",
)
REFUSALS = (
    "No, please not {v}, {why}.",
    "I can't agree to that, {why}.",
    "That's impossible, {why}.",
    "Not for me, {why}.",
)
KEEPS = (
    "Fine, we leave it at that.",
    "Then nothing changes.",
    "OK, then {v} after all.",
    "Forget it, {v} stays.",
    "I see. Back to {v}, then.",
)
JOB_OFFERS = ("I'll {job}.", "Leave it to me to {job}.", "I can {job}.", "Let me {job}.")
JOB_ASKS = ("Could you {job}?", "Would you {job}?", "Can you {job}, please?")
JOB_YES = ("Sure.", "Of course.", "I'll see to it.", "You can count on me.", "With pleasure.")
JOB_NO = ("I'm afraid {why}. Can't you?", "Not this time, {why}.", "I would, but {why}.")
JOB_BACK = ("All right, I'll do it myself.", "Then it's my job.", "Don't worry, I'll take it on.")
THANKS = ("Thank you.", "That's kind.", "Great, thanks.", "Lovely.")
CLOSINGS = ("See you!", "Great, bye!", "I look forward to it.", "Talk to you soon.", "Bye for now.")

# Words about something else, for friends and for strangers.
CHAT = (
    ("By the way, I met {n} on {day}.", "Oh, how is {n.he}?"),
    ("{n} says hello. {n.he} has just come back from {town}.", "How nice of {n.him}."),
    ("Did you know that {n} works at {place} now?", "No, I didn't."),
    ("I slept so badly on {day}.", "You should drink less coffee."),
    ("{n} wants to move to {town}, have you heard?", "Really? I'll miss {n.him}."),
    ("I lost my umbrella at {place} last week.", "What a shame."),
    ("It's been raining since {day}.", "My garden is glad of it."),
    ("My train from {town} was late again.", "They never learn."),
    ("{n} called me on {day}, by the way.", "What did {n.he} want?"),
    ("{n} is ill, did you hear?", "Oh no. I'll send {n.him} a card."),
    ("I saw {n} in {town} with a new hat.", "{n.he} has always loved hats."),
    ("My sister stayed in {town} until {day}.", "Did she like it?"),
    ("I found twenty dollars near {place}.", "Lucky you."),
)
CHAT_OF_STRANGERS = (
    ("Sorry, there's a noise on the line.", "Now I can hear you again."),
    ("Excuse me, my colleague {n} just came in.", "Take your time."),
    ("It's been raining here since {day}.", "It's the same with us."),
    ("I got your number from {n}.", "Ah, from {n.him}! I know {n.him} well."),
    ("Are you far from {place}?", "It's ten minutes on foot."),
    ("I'm calling from {town}, by the way.", "I grew up there!"),
)


def chat_values(dice: Dice) -> dict[str, Option | str]:
    """Days and places for a word about something else."""
    return {"day": dice.pick(DAYS), "place": dice.pick(PLACES), "town": dice.pick(TOWNS)}


def dispute(outcome: Outcome) -> str:
    """What a summary says of a dispute: its form depends on how the dispute went (a template)."""
    if outcome.reason is None:
        return ""
    why = outcome.reason.told(outcome.reason.now, outcome.who)
    who, wisher, other = f"{{{outcome.who}}}", f"{{{outcome.wisher}}}", outcome.other
    if outcome.event == "moved":
        return f"They first agree on {other}, but {who} asks for a change because {why}."
    if outcome.event == "kept":
        return f"{wisher} would rather have {other}, but {who} refuses because {why}."
    if outcome.who == outcome.wisher:
        return f"{who} first thinks of {other}, but {why}."
    return f"{who} turns down {other} because {why}."


def outcome_facts(cast: dict[str, Person], outcome: Outcome) -> list[Fact]:
    """What was settled and why, to be told afterwards."""
    label, value = outcome.slot.label, outcome.value.tell
    settled = Fact(
        label,
        value,
        (outcome.slot.question,),
        (
            f"{{all}} settled on {value}.",
            f"The {label} was {value} in the end.",
            f"It was {{{outcome.by}}} who came up with {value}.",
        ),
    )
    return [settled, *_dispute_facts(cast, outcome)]


def _dispute_facts(cast: dict[str, Person], outcome: Outcome) -> list[Fact]:
    if outcome.reason is None:
        return []
    reason, other = outcome.reason, outcome.other
    why = reason.told(reason.past, outcome.who)
    named = reason.told(reason.past, outcome.who, named=True)
    who, wisher = f"{{{outcome.who}}}", f"{{{outcome.wisher}}}"
    told = {
        "moved": (
            f"{other} had been the plan until {who} said that {why}.",
            f"It was going to be {other}, only {named}.",
        ),
        "kept": (
            f"{wisher} had hoped for {other}, only {named}.",
            f"For a moment {wisher} wanted {other}, yet {who} said that {why}.",
        ),
    }.get(
        outcome.event,
        (f"{who} didn't want {other}, as {why}.", f"{other} was out, since {named}."),
    )
    answer = reason.told(reason.now, outcome.who, named=True).format(**cast)
    return [
        Fact(f"not {other}", answer, (f"Why not {other}?", f"What spoke against {other}?"), told)
    ]


def duty_fact(cast: dict[str, Person], doer: str, job: str) -> Fact:
    """Who took on a job, to be told afterwards."""
    plain = job.format(**cast)
    return Fact(
        plain,
        cast[doer].name,
        (f"Who had to {plain}?",),
        (f"{{{doer}}} promised to {job}.", f"{{{doer}}} had to {job}."),
    )


def excuse_fact(reason: Reason, asker: str, refuser: str) -> Fact:
    """Why somebody could not do a job, to be told afterwards."""
    why = reason.told(reason.past, refuser)
    return Fact(
        "excuse",
        "",
        (),
        (
            f"{{{refuser}}} couldn't help because {why}.",
            f"{{{asker}}} asked {{{refuser}.whom}}, but {{{refuser}}} said that {why}.",
        ),
    )
