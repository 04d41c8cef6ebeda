"""Conversations about what has to be done: tasks at work, a favour among friends."""

from __future__ import annotations

from dialogues.base import Dice, Scene
from dialogues.leisure import DAY
from dialogues.story import Slot, Story
from dialogues.words import DAYS, FAVOURS, TASKS, THANKS

DEADLINE = Slot("deadline", DAYS, "busy", ("By when?", "When is it due?"), "By when?")


def work(dice: Dice) -> Scene:
    """Two colleagues are given tasks, may swap them, and settle when they must be done."""
    story = Story(dice, "abc", 1)
    story.say(
        "a",
        "{b}, {c}, there are two jobs to hand out.",
        "Good that you're both here, {b} and {c}.",
        "{b} and {c}, I need your help this week.",
    )
    one, two, about = _tasks(story)
    story.chat("c", "a")
    pair = ("a", dice.pick("bc")) if dice.chance(0.6) else (dice.pick("bc"), "a")
    story.settle(DEADLINE, *pair)
    story.chat("b", "c")
    story.second_thoughts()
    story.say("a", "Thank you both.", "Off you go, then.", "Good. Back to work.")
    for key, task in (("b", one), ("c", two)):
        past = (f"{{{key}}} had to {task}.", f"{{{key}}} was told to {task}.")
        story.fact(f"{{{key}}}", task, f"What did {{{key}}} have to do?", *past)
    day = story.outcomes["deadline"].value
    opening = f"{{b}} will {one} and {{c}} will {two} by {day}."
    return story.scene("work", [opening, about, story.dispute()], one, two)


def _tasks(story: Story) -> tuple[str, str, str]:
    """The tasks of b and c in the end, and the summary's sentence on a swap (a template)."""
    one, two = (task.tell for task in story.dice.sample(TASKS, 2))
    story.say("a", "{b}, could you {task}?", "I'd like {b} to {task}.", task=one)
    story.say("a", "{c}, please {task}.", "And {c} might {task}.", task=two)
    if story.dice.chance(0.45):
        story.say("b", "Will do.", "All right.", "I'll start today.")
        story.say("c", "OK, {a}.", "Consider it done.", "Me too.")
        return one, two, ""
    reason = story.reason("cannot")
    why = story.dice.pick(reason.says)
    story.say("b", "Mine's bad for me, {why}.", "That's hard for me, {why}.", why=why)
    story.say("c", "Then do mine, {b}, and I'll do yours.", "I don't mind trading with you, {b}.")
    story.say("b", "Thanks, {c}.", "You're a friend.", "That helps.")
    past = f"{{b}} couldn't {one} because {reason.told(reason.past, 'b')}."
    story.fact(f"not {one}", reason.told(reason.now, "b", named=True), "", past)
    return two, one, f"{{b}} was meant to {one}, but {reason.told(reason.now, 'b')}."


def favour(dice: Dice) -> Scene:
    """Somebody needs a hand; one friend cannot, another can, for a small thanks."""
    story = Story(dice, "abc", 1)
    job, ask, offer = dice.pick(FAVOURS)
    helper, other = dice.sample("bc", 2)
    need = story.reason("busy")
    forms = ("I need a favour: {why}.", "Listen, {why}.", "I'm in trouble, {why}.")
    story.say("a", *forms, why=need.says[0])
    refusal = _refusal(story, other, ask)
    story.chat(other, helper)
    if dice.chance(0.5):
        story.say("a", f"And you, {{{helper}}}?", f"What about you, {{{helper}}}?")
        story.say(helper, "Yes, I can.", "I'd be glad to.", "Of course.")
    else:
        story.say(helper, f"I can {offer}, {{a}}.", f"Let me {offer}.", "I'll do it.")
    story.settle(DAY, *dice.sample(["a", helper], 2))
    thanks = _thanks(story, helper)
    story.second_thoughts()
    story.say("a", "Thanks again.", "You've saved me.", "What would I do without you?")
    past = (
        f"{{{helper}}} agreed to {job}.",
        f"{{{helper}}} said yes when {{a}} asked {{{helper}.him}}.",
    )
    story.fact("help", f"{{{helper}}}", f"Who agreed to {job}?", *past)
    day = story.outcomes["day"].value
    named = job.replace("{a.his}", "{a.names}").replace("{a.him}", "{a}")
    why = need.told(need.now, "a", named=True)
    opening = f"{{{helper}}} will {named} on {day} because {why}."
    summary = [opening, refusal, story.dispute(), f"{{a}} will {thanks}."]
    return story.scene("favour", summary, job, thanks)


def _refusal(story: Story, other: str, ask: str) -> str:
    """Let `other` be asked in vain; the summary's sentence on it (a template)."""
    reason = story.reason("cannot")
    story.say("a", f"Could you {ask}, {{{other}}}?", f"{{{other}}}, would you {ask}?")
    forms = ("I'm sorry, {why}.", "I'd love to, but {why}.", "No, {why}.")
    story.say(other, *forms, why=story.dice.pick(reason.says))
    past = f"{{{other}}} couldn't, since {reason.told(reason.past, other)}."
    value = reason.told(reason.now, other, named=True)
    story.fact(f"not {{{other}}}", value, f"Why couldn't {{{other}}}?", past)
    return f"{{{other}}} cannot help because {reason.told(reason.now, other)}."


def _thanks(story: Story, helper: str) -> str:
    """What the helper gets for it (a template of a verb)."""
    told, promise = story.dice.pick(THANKS)
    story.say("a", f"{promise}, {{{helper}}}.")
    story.say(helper, "You don't have to!", "I won't say no.", "That's sweet of you.")
    told = told.replace("{x", f"{{{helper}")
    story.fact("thanks", told, "What was the thanks?", f"{{a}} promised to {told}.")
    return told
