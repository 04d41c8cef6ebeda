"""Conversations among friends: a meal out, a dinner at home, a trip, a present."""

from __future__ import annotations

from dialogues import forms
from dialogues.base import Dice, Option, Scene
from dialogues.story import Slot, Story
from dialogues.words import (
    DAYS,
    DISHES,
    DUTIES,
    GIFTS,
    MEALS,
    OCCASIONS,
    PLACES,
    TIMES,
    TO_BRING,
    TOWNS,
    TRANSPORT,
)

DAY = Slot("day", DAYS, "busy", ("Which day suits you?", "When are you free?"), "On which day?")
PLACE = Slot(
    "place", PLACES, "place", ("Where shall we go?", "Where would you like to go?"), "Where?"
)


def clock(options: tuple[Option, ...] = TIMES) -> Slot:
    """A time of day to settle."""
    return Slot("time", options, "busy", ("What time?", "And at what time?"), "At what time?")


def outing(dice: Dice) -> Scene:
    """Two friends meet for a meal: where, when, and who sees to what."""
    story = Story(dice, "ab", 3)
    meal = dice.pick(list(MEALS))
    story.say(
        "a",
        f"Hi {{b}}, it's been too long. Shall we have {meal} together?",
        f"Hello {{b}}! Are you in the mood for {meal} one of these days?",
        f"{{b}}, I'd love to have {meal} with you.",
        f"Have you got time for {meal} with me, {{b}}?",
    )
    story.say("b", "Gladly!", "I'd like that, {a}.", "Hi {a}! Yes, let's.", "What a good idea.")
    for slot in dice.sample([PLACE, DAY, clock(MEALS[meal])], 3):
        first, second = dice.sample("ab", 2)
        story.settle(slot, first, second)
        story.chat(first, second)
    one, two = dice.sample("ab", 2)
    duty = story.duty(one, two, *dice.pick(DUTIES))
    story.second_thoughts()
    story.say(dice.pick("ab"), *forms.CLOSINGS)
    where, day, time = (story.outcomes[key] for key in ("place", "day", "time"))
    opening = (
        f"{{a}} invites {{b}} to {meal} at {where.value} on {day.value} at {time.value}."
        if where.by == "a"
        else f"{{a}} and {{b}} will have {meal} on {day.value} at {time.value}. "
        f"They will eat at {where.value}, which is {{b.names}} idea."
    )
    return story.scene("outing", [opening, story.dispute(), duty], meal)


def dinner(dice: Dice) -> Scene:
    """One cooks at home, two guests bring something; what each brings may be swapped."""
    story = Story(dice, "abc", 2)
    story.say(
        "a",
        "I want to cook for the two of you, {b} and {c}.",
        "{b}, {c}, come and eat at my place!",
        "It's my turn to have you both over for a meal.",
    )
    story.say("b", "Wonderful!", "With pleasure, {a}.", "You're the best cook I know.")
    story.say("c", "I'm in.", "Count me in.", "Oh yes, please.")
    asks = ("What would you like to eat?", "What's on the menu?")
    slots = [Slot("dish", DISHES, "dish", asks, "What was on the table?"), DAY]
    for slot in dice.sample(slots, 2):
        first, second = ("a", dice.pick("bc")) if dice.chance(0.6) else (dice.pick("bc"), "a")
        story.settle(slot, first, second)
        story.chat("b", "c")
    brings = _brings(story)
    story.second_thoughts()
    story.say("a", "I can't wait.", "Come hungry!", "That'll be fun.", "See you then.")
    dish, day = (story.outcomes[key] for key in ("dish", "day"))
    opening = f"{{a}} will cook {dish.value} for {{b}} and {{c}} on {day.value}."
    if dish.by != "a":
        opening = (
            f"{{b}} and {{c}} will eat at {{a.names}} on {day.value}. "
            f"{{{dish.by}}} wishes for {dish.value}."
        )
    return story.scene("dinner", [opening, story.dispute(), brings])


def _brings(story: Story) -> str:
    """Two guests choose what to bring, and may swap; the summary's sentence (a template)."""
    one, two = story.dice.sample(TO_BRING, 2)
    story.say("b", "I'll bring {v}.", "Let me bring {v}.", "I could come with {v}.", v=one)
    story.say("c", "Then {v} will be mine.", "And I'll see to {v}.", "I can bring {v}.", v=two)
    swapped = story.dice.chance(0.4)
    if swapped:
        story.say("b", "Could we swap, {c}?", "{c}, would you mind the other way round?")
        story.say("c", "Not at all.", "Fine, let's swap.", "Sure, I'll bring yours.")
        one, two = two, one
    for key, thing in (("b", one), ("c", two)):
        past = (f"{{{key}}} brought {thing}.", f"{thing} came from {{{key}.whom}}.")
        story.fact(f"from {{{key}}}", thing.tell, f"What did {{{key}}} bring?", *past)
    if swapped:
        return f"After a swap, {{b}} will bring {one} and {{c}} {two}."
    return f"{{b}} will bring {one} and {{c}} will bring {two}."


def trip(dice: Dice) -> Scene:
    """Three friends go away: where to, how, on which day."""
    story = Story(dice, "abc", 3)
    story.say(
        "a",
        "We three should get out of here for a day.",
        "Let's go somewhere together, {b} and {c}!",
        "{b}, {c}, who wants to see something new?",
    )
    story.say("b", "I do!", "Oh yes, I need a break.", "Good thinking, {a}.")
    story.say("c", "So do I.", "Me too.", "I'm with you.")
    slots = [
        Slot("town", TOWNS, "town", ("Where to?", "Where shall we go?"), "Where did they go?"),
        Slot(
            "transport", TRANSPORT, "transport", ("How do we get there?",), "How did they travel?"
        ),
        DAY,
    ]
    for slot in dice.sample(slots, 3):
        first, second, third = dice.sample("abc", 3)
        story.settle(slot, first, second)
        story.chat(third, first)
    one, two = dice.sample("abc", 2)
    jobs = [
        ("buy the tickets", "get us the tickets", "get us the tickets"),
        ("pack the sandwiches", "make us some sandwiches", "make us some sandwiches"),
        ("bring the map", "bring your map", "bring my map"),
    ]
    duty = story.duty(one, two, *dice.pick(jobs))
    story.second_thoughts()
    story.say(dice.pick("abc"), *forms.CLOSINGS)
    town, way, day = (story.outcomes[key] for key in ("town", "transport", "day"))
    opening = f"{{a}}, {{b}} and {{c}} will take {way.value} to {town.value} on {day.value}."
    if town.by != "a":
        others = " and ".join(f"{{{key}}}" for key in "abc" if key != town.by)
        opening = (
            f"{{{town.by}}} persuades {others} to go to {town.value}. "
            f"They will take {way.value} on {day.value}."
        )
    return story.scene("trip", [opening, story.dispute(), duty])


def present(dice: Dice) -> Scene:
    """Two friends choose a present for a third person, what it may cost, and who buys it."""
    story = Story(dice, "ab", 1)
    occasion = dice.pick(OCCASIONS)
    story.say("a", "{b}, what do we give {r} for {r.his} {v}?",
              "Have you thought of something for {r.names} {v}?",
              "We still need a present for {r}. It's {r.his} {v} soon.", v=occasion)  # fmt: skip
    story.say(
        "b", "No idea yet.", "Good that you ask.", "Let me think.", "I've been wondering too."
    )
    asks = ("What might {r.he} like?", "What does {r.he} need?")
    story.settle(Slot("present", GIFTS, "gift", asks, "What did they give?"), *dice.sample("ab", 2))
    story.chat("a", "b")
    price = _limit(story)
    one, two = dice.sample("ab", 2)
    jobs = (
        ("buy it", "go and get it", "go and get it"),
        ("wrap it", "put it in nice paper", "put it in nice paper"),
    )
    duty = story.duty(one, two, *dice.pick(jobs))
    story.second_thoughts()
    gift = story.outcomes["present"]
    story.say(dice.pick("ab"), *forms.CLOSINGS)
    opening = f"{{a}} and {{b}} will give {{r}} {gift.value} for {{r.his}} {occasion}. {price}"
    if gift.by == "b":
        opening = (
            f"{{b}} helps {{a}} to find a present for {{r.names}} {occasion}: {gift.value}. {price}"
        )
    return story.scene("present", [opening, story.dispute(), duty], occasion.tell)


def _limit(story: Story) -> str:
    """How much to spend: a first sum, and often another one; the summary's sentence."""
    first, second = story.dice.sample(range(20, 125, 5), 2)
    one, two = story.dice.sample("ab", 2)
    story.say(
        one, "Let's spend ${p} at most.", "I'd go up to ${p}.", "Is ${p} all right?", p=str(first)
    )
    if story.dice.chance(0.35):
        story.say(two, "Good.", "That's what I'd have said.", "Fine with me.")
        second = first
    elif second > first:
        story.say(two, "Let's be generous and make it ${p}.", "We can do ${p}.", p=str(second))
        story.say(one, "All right.", "If you say so.", "Why not.")
    else:
        story.say(two, "My wallet says ${p}.", "${p} is plenty.", p=str(second))
        story.say(one, "All right.", "If you say so.", "You're right.")
    past = (f"{{all}} didn't want to spend more than ${second}.", f"${second} was the limit.")
    story.fact("limit", f"${second}", "How much could it cost?", *past)
    return f"They will spend ${second}" + (f" instead of ${first}." if first != second else ".")
