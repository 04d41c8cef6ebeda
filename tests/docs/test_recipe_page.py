"""docs/recipe.md is what recipe.py says, and recipe.py says it of every setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.contracts import recipe_reference
from tasks.contracts.recipe import Recipe

PAGE = Path(__file__).parents[2] / "docs/recipe.md"
SETTINGS = {key: (field, schema) for key, field, schema in recipe_reference.settings()}


def test_the_page_is_up_to_date() -> None:
    """Made again from recipe.py it is the same, byte for byte."""
    assert PAGE.read_text() == recipe_reference.page(), "run `make docs`"


def test_every_setting_stands_in_the_page() -> None:
    """In the order of the file: the keys of a recipe with every default written out."""
    data = {"name": "n", "data": {"train": "t"}, "base": {"model": "m"}}
    written_out = Recipe.model_validate(data).model_dump()

    def keys(values: dict[str, object], prefix: str = "") -> list[str]:
        full_keys: list[str] = []
        for name, value in values.items():
            full_keys += (
                keys(value, f"{prefix}{name}.")
                if isinstance(value, dict) and prefix + name not in SETTINGS  # a setting of its own
                else [prefix + name]
            )
        return full_keys

    assert list(SETTINGS) == keys(written_out)
    rows = [line.split("`")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert rows == list(SETTINGS)


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_is_explained(key: str) -> None:
    """A title, and a description in sentences; where None is a value, what it means."""
    field, _ = SETTINGS[key]
    assert field.title
    assert field.description
    assert field.description.endswith(".")
    assert "`" not in field.description  # Prefect's form shows Markdown
    if field.default is None and not field.is_required():
        assert "None" in field.description


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("data.train_rows", "whole number > 0 or none"),
        ("data.evaluation_share", "number > 0 and < 1"),
        ("data.fields.summary", "text or list of text or none"),
        ("base.quantization", "`nf4`, `fp4`, `int8`, `none`"),
        ("training.seed", "whole number ≥ 0 and < 2^32"),
        ("gate.length_ratio", "a list of 2: number"),
        ("gate.bootstrap_samples", "whole number ≥ 1,000 and ≤ 1,000,000"),
    ],
)
def test_allowed_values(key: str, values: str) -> None:
    """As the validation has them."""
    assert recipe_reference.allowed(SETTINGS[key][1]) == values
