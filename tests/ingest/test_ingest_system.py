"""A column of system messages: guessed or named, before what its row asks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError
from test_ingest_messages import ANSWER, CHAT, PLAIN, USER, read

from tasks.contracts.recipe import Fields, Prompt, Recipe
from tasks.ingest.column_problems import problems_of
from tasks.ingest.columns import Columns, choose

LED = Columns(None, (), None, "messages", system="system")
LED_PAIR = Columns("prompt", ("completion",), None, None, system="system")
TERSE = {"role": "system", "content": "Be terse."}
TEXT = "<s>[INST] Who came? [/INST] Ben. </s>"
TEXT_LED = "<s>[INST] <<SYS>>\nBe terse.\n<</SYS>>\n\nWho came? [/INST] Ben. </s>"


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": [USER, ANSWER]}, LED),
        ({"messages": [TERSE, USER, ANSWER]}, LED),
        ({"messages": json.dumps([USER, ANSWER])}, LED),
        ({"messages": TEXT}, LED),
        ({"messages": TEXT_LED}, LED),
        ({"prompt": "Who came?", "completion": "Ben."}, LED_PAIR),
        ({"prompt": [USER], "completion": [ANSWER]}, LED_PAIR),
        ({"prompt": [TERSE, USER], "completion": [ANSWER]}, LED_PAIR),
    ],
    ids=range(8),
)
def test_a_system_column_stands_before_what_the_row_asks(row: Any, columns: Columns) -> None:
    """Whatever form it has; one that says the same as the conversation's own is that one."""
    assert read(row | {"system": " Be terse.\n"}, columns) == ([TERSE, USER], ("Ben.",))


@pytest.mark.parametrize("system", [None, "", "  ", float("nan")])
def test_a_row_with_a_blank_system_column_has_none(system: Any) -> None:
    """prompt.system applies to it, as to any conversation without one."""
    assert read({"messages": [USER, ANSWER], "system": system}, LED) == PLAIN
    row = {"prompt": "Who came?", "completion": "Ben.", "system": system}
    assert read(row, LED_PAIR) == ("Who came?", ("Ben.",))


def test_two_system_messages_that_differ_are_rejected() -> None:
    """By line: one of them would be lost."""
    for value in ([TERSE, USER, ANSWER], TEXT_LED):
        problem = read({"messages": value, "system": "Rhyme."}, LED)
        assert "and the row's system column (data.fields.system) holds another one" in problem
    assert '"system" is a number' in read({"messages": [USER, ANSWER], "system": 3}, LED)


SYSTEM_COLUMNS = [
    ({"system": "Be terse."}, "system"),
    ({"System_Prompt": "Be terse."}, "System_Prompt"),
    ({"system_message": "Be terse.", "topic": "x"}, "system_message"),
    ({"system": "Be terse.", "system_prompt": ""}, "system"),
    ({"system": ""}, None),
    ({"system": ["Be terse."]}, None),
    ({"system": 3}, None),
    ({"system": "Be terse.", "system_prompt": "Rhyme."}, None),
    ({"ecosystem": "Be terse."}, None),
]


@pytest.mark.parametrize(("more", "guess"), SYSTEM_COLUMNS, ids=range(len(SYSTEM_COLUMNS)))
def test_a_usual_name_and_texts_make_a_system_column(more: dict[str, Any], guess: Any) -> None:
    """Guessed and shown as guessed, for chat alone; of two with texts neither is guessed."""
    for row in ({"messages": [USER, ANSWER]}, {"question": "Who came?", "answer": "Ben."}):
        rows = [row | more]
        columns, fit = choose(Fields(), list(rows[0]), rows, CHAT)
        assert (fit, columns.system) == (True, guess)
        assert ("system is " in columns.in_words) == bool(guess)
        assert ("system" in columns.guessed) == bool(guess)
        assert choose(Fields(), list(rows[0]), rows, Prompt())[0].system is None


def test_a_named_system_column_is_used_whatever_it_is_called() -> None:
    """And is missed where a file has none."""
    rows = [{"messages": [USER, ANSWER], "persona": "Be terse.", "system": "Rhyme."}]
    fields = Fields(system="persona", ignore=("system",))
    columns, _ = choose(fields, list(rows[0]), rows, CHAT)
    assert (columns.system, columns.guessed) == ("persona", ("text",))
    for more in ({}, {"persona": "Be terse."}):
        names = ["messages", *more]
        columns, fit = choose(fields, names, [rows[0]], CHAT)
        found = problems_of("t.jsonl", columns, fit, names, [rows[0]], fields, CHAT)
        missing = [p for p in found if 'no column "persona" (data.fields.system)' in p]
        assert bool(missing) == (not more)


def test_a_system_column_needs_a_place() -> None:
    """A prompt template has none, nor have several inputs by name."""
    recipe = {"name": "r", "base": {"model": "b"}, "data": {"train": "t.jsonl"}}
    named = recipe | {"data": {"train": "t.jsonl", "fields": {"system": "persona"}}}
    with pytest.raises(
        ValidationError, match=r"prompt\.format template has no system message: set"
    ):
        Recipe.model_validate(named)
    Recipe.model_validate(named | {"prompt": {"format": "chat"}})
    with pytest.raises(ValidationError, match="with inputs name its column among them"):
        Fields(system="persona", inputs={"a": "b"})


@pytest.mark.parametrize(
    ("row", "prompt", "line"),
    [
        ({"messages": [USER, ANSWER], "system": "x"}, Prompt(), "system: system and prompt.format: chat"),
        ({"question": "a", "answer": "b", "system": "x"}, Prompt(), "system: system and prompt.format: chat"),
        ({"messages": [USER, ANSWER], "system": "x", "system_prompt": "y"}, CHAT, "system: system"),
        ({"messages": [USER, ANSWER], "system": ["x"]}, CHAT, None),
    ],
    ids=range(4),
)  # fmt: skip
def test_a_system_column_that_is_not_used_leads_to_its_line(
    row: dict[str, Any], prompt: Prompt, line: str | None
) -> None:
    """Under a prompt template, or where two columns could be meant; not for what is no text."""
    columns, fit = choose(Fields(), list(row), [row], prompt)
    assert columns.system is None
    [problem] = problems_of("t.jsonl", columns, fit, list(row), [row], Fields(), prompt)
    assert (f"system message: data.fields.{line};" in problem) == bool(line)
    assert "data.fields.ignore: [system" in problem
