"""Conversations about money: haggling over a used thing, booking a hotel room."""

from __future__ import annotations

from dialogues.base import Dice, Option, Scene
from dialogues.leisure import DAY, clock
from dialogues.story import Story
from dialogues.words import DAYS, ITEMS, ROOMS


def sale(dice: Dice) -> Scene:
    """A seller and a buyer haggle over a used thing, then agree when it changes hands."""
    story = Story(dice, "ab", 2, strangers=True)
    item = dice.pick(ITEMS)
    story.say(
        "b",
        f"Hello, are you the one selling the {item}?",
        f"Is the {item} still for sale, {{a}}?",
        f"Hi {{a}}, I'm calling about your {item}.",
    )
    story.say("a", "Yes, that's right.", "It is, {b}.", "Yes, I've still got it.")
    price, why = _haggle(story)
    story.chat("b", "a")
    for slot in dice.sample([DAY, clock()], 2):
        story.settle(slot, *dice.sample("ab", 2))
    way = _handover(story)
    story.second_thoughts()
    story.say(dice.pick("ab"), "Thanks.", "Goodbye.", "It was nice talking to you.", "Done!")
    day, time = (story.outcomes[key].value for key in ("day", "time"))
    summary = [
        f"{{b}} buys {{a.names}} {item} for ${price}. {why}",
        f"{way} on {day} at {time}.",
        story.dispute(),
    ]
    return story.scene("sale", summary, item, str(price))


def _haggle(story: Story) -> tuple[int, str]:
    """The price in the end, and the summary's sentence on how it came about (a template)."""
    high = 60 + 5 * story.dice.below(40)
    low = high - 15 - 5 * story.dice.below(5)
    reason = story.reason("price")
    story.say("b", "What do you want for it?", "How much is it?")
    story.say("a", "I'm asking ${p}.", "It's ${p}.", "${p}, please.", p=str(high))
    story.say(
        "b",
        "But {why}. Would you take ${p}?",
        "${p} would be fairer, {why}.",
        "Hm, {why}. I'd pay ${p}.",
        p=str(low),
        why=story.dice.pick(reason.says),
    )
    how = story.dice.below(3)
    if how == 0:
        price, why = low, f"{{a}} lowers the price from ${high} because {reason.now}."
        story.say("a", "You have a point. Take it.", "All right, it's yours.", "Well, why not.")
    elif how == 1:
        price, why = high, f"{{b}} offers ${low} because {reason.now}, but {{a}} refuses."
        story.say(
            "a", "No, that's my last word.", "I can't go down, sorry.", "Others would pay it."
        )
        story.say("b", "All right, I'll pay it.", "Then I give in.", "Well, I do want it.")
    else:
        price = (high + low) // 10 * 5
        why = (
            f"{{b}} offers ${low} instead of ${high} because {reason.now}, so they meet in between."
        )
        story.say("a", "Let's meet in the middle: ${p}.", "My last offer is ${p}.", p=str(price))
        story.say("b", "Deal.", "Done.", "I can live with that.")
    question = "What was the price?"
    past = (f"{{b}} paid ${price} for it.", f"{{a}} got ${price}.", f"It went for ${price}.")
    story.fact("price", f"${price}", question, *past)
    told = (f"{{a}} first asked for ${high}.", f"{{b}} complained that {reason.past}.")
    story.fact("asked", f"${high}", "What did the seller ask for?", *told)
    return price, why


def _handover(story: Story) -> str:
    """Who takes the thing to whom: the start of the summary's sentence on it (a template)."""
    if story.dice.chance(0.4):
        story.say(
            "b", "I've no car, can you bring it over?", "How do I get it home? Would you bring it?"
        )
        story.say("a", "Yes, I've got a van.", "No problem.", "Sure, tell me the address.")
        story.fact("handover", "delivery", "", "{a} took it to {b.whom}.")
        return "{a} will deliver it"
    story.say(
        "b", "I'll come and get it.", "I'll be at your door.", "My brother and I will come over."
    )
    story.say("a", "You'll find the bell at the gate.", "Good.", "I'll have it ready.")
    story.fact("handover", "collection", "", "{b} went to {a.whom} to get it.")
    return "{b} will collect it"


def hotel(dice: Dice) -> Scene:
    """A guest books a room at a desk: which, from when, for how long, at what price."""
    story = Story(dice, "ab", 0, strangers=True)
    house = dice.pick(["Hotel Bellevue", "the Station Hotel", "the Lake Hotel", "Hotel Astoria"])
    story.say("a", f"Good morning, {house}, {{a}} speaking.", f"Welcome to {house}. I'm {{a}}.")
    story.say(
        "b", "Hello, this is {b}. I'd like to stay with you.", "My name is {b}. I need a room."
    )
    room, about_room = _room(story)
    days, nights = dice.sample(DAYS, 2), 2 + dice.below(7)
    story.say("a", "From when, and for how long?", "When will you come?", "For how many nights?")
    forms = ("From {d}, for {n} nights.", "{n} nights, from {d} on.")
    story.say("b", *forms, d=days[0], n=str(nights))
    story.chat("a", "b")
    price = _price(story)
    day, nights, about_stay = _change_of_stay(story, days, nights)
    story.say("a", "It's noted.", "Thank you for calling.", "We're expecting you.")
    opening = f"{{b}} books {room} for {nights} nights from {day}. A night costs {price}."
    return story.scene(
        "hotel", [opening, about_room, about_stay], room.tell, day.tell, str(nights), price
    )


def _room(story: Story) -> tuple[Option, str]:
    """The room, and the summary's sentence about the one that was not to be had (a template)."""
    wish, room = story.dice.sample(ROOMS, 2)
    story.say("b", "I'd like {v}.", "Do you have {v}?", "I was hoping for {v}.", v=wish)
    about = ""
    if story.dice.chance(0.45):
        story.say("a", "We have that.", "Yes, you can have it.", "That's possible.")
        room = wish
    else:
        reason = story.reason("room")
        forms = ("I'm sorry, {why}. I can give you {v}.", "Not this week, {why}. How about {v}?")
        story.say("a", *forms, v=Option(room.tell), why=story.dice.pick(reason.says))
        story.say("b", "All right.", "That'll do.", "I'll take that one, then.")
        past = (
            f"{{b}} had hoped for {wish}, but {reason.past}.",
            f"{wish} wasn't free: {reason.past}.",
        )
        story.fact(f"not {wish}", reason.now, f"Why not {wish}?", *past)
        about = f"{{b}} asks for {wish}, but {reason.now}."
    story.fact(
        "room", room.tell, "Which room was it?", f"{{b}} stayed in {room}.", f"{{b}} got {room}."
    )
    return room, about


def _price(story: Story) -> str:
    """What a night costs, and whether breakfast is part of it."""
    price, extra = 50 + 5 * story.dice.below(30), 8 + story.dice.below(8)
    forms = (
        "It's ${p} a night. Breakfast is ${e} more.",
        "We charge ${p} a night, or ${e} more with breakfast.",
    )
    story.say("a", *forms, p=str(price), e=str(extra))
    if story.dice.chance(0.5):
        told = f"${price} with breakfast"
        story.say(
            "b", "Breakfast too, please.", "I'll eat with you.", "I can't do without my eggs."
        )
    else:
        told = f"${price} without breakfast"
        story.say("b", "Just the bed.", "I'll eat in town.", "I never eat so early.")
    past = (f"{{b}} paid {told} for each night.", f"The nights were {told}.")
    story.fact("price", told, "What did a night cost?", *past)
    return told


def _change_of_stay(story: Story, days: list[Option], nights: int) -> tuple[Option, int, str]:
    """Day and nights in the end, and the summary's sentence on a change (a template)."""
    day, about, how = days[0], "", story.dice.below(3)
    if how == 1:
        day, reason = days[1], story.reason("busy")
        forms = ("Oh, on {old} {why}. I'd come on {v}.", "Can I come on {v}? On {old} {why}.")
        story.say("b", *forms, old=days[0], v=day, why=story.dice.pick(reason.says))
        about = f"{{b}} cannot come on {days[0]} because {reason.told(reason.now, 'b')}."
        why = f"{{b}} couldn't come on {days[0]} because {reason.told(reason.past, 'b')}."
        value = reason.told(reason.now, "b", named=True)
        story.fact(f"not {days[0]}", value, f"Why not {days[0]}?", why)
    elif how == 2:
        more = 1 + story.dice.below(3)
        count = ("one night", "two nights", "three nights")[more - 1]
        story.say("b", "Could I have {n} more?", "And please add {n}.", n=count)
        about = f"{{b}} first wants to stay only {nights} nights."
        nights += more
    if how:
        story.say("a", "Of course.", "That's no trouble.", "I've changed it.")
    past = (
        f"{{b}} was there from {day} for {nights} nights.",
        f"{{b}} came on {day} for {nights} nights.",
    )
    story.fact("stay", f"{nights} nights from {day}", "How long, and from when?", *past)
    return day, nights, about
