"""Columns in a recipe: what each may be together with the others, and with the template."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import ValidationError

from tasks.contracts.recipe import Data, Recipe

QC = {"inputs": {"q": "question", "c": "context"}}


def recipe(data: dict[str, Any] | None = None, **prompt: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "a",
            "data": {"train": "t", **(data or {})},
            "base": {"model": "b"},
            "prompt": prompt,
        }
    )


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, {"template": 'As {"a": 1} {x} {{y}}: {document}'}),
        (QC, {"template": 'As {"q": {1}} {}: {q} {c}'}),
        (QC, {"format": "chat"}),
        (QC, {"format": "chat", "template": "{c}\n{q}"}),
        ({"inputs": {"document": "passage"}}, {}),
        (
            QC | {"optional": ["c"], "summary": ["a", "b"], "ignore": ["label"]},
            {"template": "{q}{c}"},
        ),
    ],
)
def test_a_template_with_a_place_for_each_text(
    fields: dict[str, Any], prompt: dict[str, Any]
) -> None:
    """Braces around anything but an input's name are text."""
    assert recipe({"fields": fields}, **prompt).prompt


@pytest.mark.parametrize(
    ("fields", "prompt", "says"),
    [
        ({}, {"template": "no place"}, "must hold {document} exactly once"),
        ({}, {"template": "{document} {document}"}, "exactly once"),
        (QC, {}, "the default.* must hold {q}, {c} .*it lacks {q}, {c}; it holds {document}"),
        (QC, {"template": "{q}"}, "it lacks {c}"),
        (QC, {"template": "{q}{c}{c}"}, "it holds {c} more than once"),
        (
            QC,
            {"template": "{q}{c}{contxt}"},
            "it holds {contxt}, and data.fields.inputs has no contxt",
        ),
        (QC, {"format": "chat", "template": "{q}"}, "it lacks {c}"),
        (QC, {"template": "{q}{c}", "summarize": "map_reduce"}, "choose summarize direct"),
        (QC | {"document": "d"}, {"template": "{q}{c}"}, "inputs replaces document"),
        (QC | {"text": "d"}, {"template": "{q}{c}"}, "text replaces document, inputs"),
        (QC | {"optional": ["x"]}, {"template": "{q}{c}"}, "optional names x, and inputs has q, c"),
        (
            QC | {"ignore": ["context"]},
            {"template": "{q}{c}"},
            "ignore names context, which is used",
        ),
        (QC | {"summary": "question"}, {"template": "{q}{c}"}, "names question twice"),
        ({"inputs": {"q": "c", "c": "q"}}, {"template": "{q}{c}"}, "choose other names"),
        ({"inputs": {"a b": "c"}}, {"template": "{a b}"}, "match pattern"),
        ({"inputs": {}}, {}, "at least 1"),
        ({}, {"format": "chat", "template": "Say: {document}"}, "put the instruction in system"),
    ],
)
def test_what_does_not_fit_together(
    fields: dict[str, Any], prompt: dict[str, Any], says: str
) -> None:
    """What is missing, unknown, double or unused is named."""
    with pytest.raises(ValidationError, match=says):
        recipe({"fields": fields}, **prompt)


@pytest.mark.parametrize(
    ("fields", "own", "expected"),
    [
        ({"document": "d", "summary": "s", "id": "i"}, {"summary": "t"}, ("d", "t", "i", None)),
        ({"document": "d", "summary": "s"}, {"text": "c"}, (None, None, None, "c")),
        ({"text": "c"}, {"document": "d", "summary": "s"}, ("d", "s", None, None)),
        ({"document": "d", "id": "i"}, {"id": None}, ("d", None, None, None)),
    ],
)
def test_evaluation_fields_inherit_what_they_leave_out(
    fields: dict[str, Any], own: dict[str, Any], expected: tuple[str | None, ...]
) -> None:
    """Named ones replace their like; null lets a column be guessed again."""
    data = Data.model_validate(
        {"train": "t", "evaluation": "e", "fields": fields, "evaluation_fields": own}
    )
    found = data.fields_of_evaluation
    assert (found.document, found.summary, found.id, found.text) == expected
    assert Data.model_validate(data.model_dump(mode="json")).fields_of_evaluation == found


@pytest.mark.parametrize("mode", ["json", "python"])
def test_a_recipe_that_was_sent_is_the_same(mode: Literal["json", "python"]) -> None:
    """To a deployed run or a child process: what evaluation_fields left out is still as in fields."""
    own = {"summary": ["s1", "s2"], "ignore": ["x"]}
    first = recipe({"evaluation": "e", "fields": QC, "evaluation_fields": own}, template="{q}{c}")
    sent = Recipe.model_validate(first.model_dump(mode=mode))
    assert sent == first
    assert sent.data.fields_of_evaluation == first.data.fields_of_evaluation
    assert sent.data.fields_of_evaluation.inputs == QC["inputs"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"evaluation_fields": {"summary": "s"}}, "evaluation_fields needs data.evaluation"),
        (
            {
                "evaluation": "e",
                "fields": QC | {"ignore": ["x"]},
                "evaluation_fields": {"summary": "x"},
            },
            "evaluation_fields, with what it leaves out .*: ignore names x, which is used",
        ),
        (
            {"evaluation": "e", "fields": QC, "evaluation_fields": {"inputs": {"q": "x"}}},
            "evaluation_fields has inputs q and fields c, q",
        ),
        (
            {"evaluation": "e", "fields": QC, "evaluation_fields": {"document": "x"}},
            "evaluation_fields has inputs none and fields c, q",
        ),
    ],
)
def test_evaluation_fields_that_make_another_prompt(data: dict[str, Any], says: str) -> None:
    """One prompt is made of both files' rows."""
    with pytest.raises(ValidationError, match=says):
        recipe(data, template="{q}{c}")
