"""The shape in which Prefect's form shows a recipe, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate

from deployments import steps
from flows import recipes
from flows.check_data import check_data
from flows.evaluate import evaluate_champion
from flows.recipe_form import ADVANCED, COMMON, as_form, as_recipe
from flows.retrain import retrain, retrain_short_form
from tasks.contracts.recipe import Recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "deployments" / "recipes").glob("*.yaml"))
DEMO = ROOT / "deployments" / "recipes" / "demo.yaml"


def schema_of(flow: Any) -> dict[str, Any]:
    """The schema that `prefect deploy` stores."""
    return parameter_schema(flow.fn).model_dump()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_comes_back_from_the_form_as_it_went_in(path: Path) -> None:
    """And the server takes it in both shapes, for each flow that takes a recipe."""
    recipe = recipes.load(path)
    form = steps.load_recipe(str(path))
    assert Recipe(**as_recipe(form["recipe"])) == recipe
    for flow in (retrain, retrain_short_form, evaluate_champion, check_data):
        schema = schema_of(flow)
        assert not validate(form, schema)
        assert not validate({"recipe": recipe.model_dump(mode="json")}, schema)
        assert flow.validate_parameters(form)["recipe"] == recipe


def test_what_people_change_stands_first_and_the_rest_is_one_line_a_group() -> None:
    """Required ones and a dozen; a group at its defaults is null."""
    recipe = schema_of(retrain)["properties"]["recipe"]
    places = {name: one["position"] for name, one in recipe["properties"].items()}
    assert sorted(places, key=places.__getitem__) == ["name", *COMMON, ADVANCED]
    shown = [name for group in COMMON for name in recipe["properties"][group]["properties"]]
    required = 1 + sum(len(recipe["properties"][group].get("required", ())) for group in COMMON)
    assert required == 3
    assert 1 + len(shown) - required == 12
    advanced = as_form(recipes.load(DEMO))[ADVANCED]
    assert [name for name, values in advanced.items() if values is None] == [
        "base", "prompt", "merge", "gate", "register",
    ]  # fmt: skip


def test_every_setting_is_in_the_form_once() -> None:
    """None was forgotten, and the short form has the common ones alone."""
    recipe = schema_of(retrain)["properties"]["recipe"]["properties"]
    short = schema_of(retrain_short_form)["properties"]["recipe"]["properties"]
    assert {name: one for name, one in recipe.items() if name != ADVANCED} == short
    for group, values in Recipe.model_validate(recipes.load(DEMO)).model_dump(mode="json").items():
        if not isinstance(values, dict):
            continue
        common = list(recipe.get(group, {}).get("properties", {}))
        rest = list(recipe[ADVANCED]["properties"][group]["anyOf"][1]["properties"])
        assert sorted([*common, *rest]) == sorted(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"learning_rat": 1}}, "learning_rat"),
        ({"trainin": {}}, "trainin"),
        ({ADVANCED: {"training": {"nothing": 1}}}, "nothing"),
        ({ADVANCED: {"trainin": None}}, "trainin"),
    ],
)
def test_a_name_that_is_no_setting_is_refused_by_the_server(
    change: dict[str, Any], message: str
) -> None:
    """In the form's shape too, before a worker starts anything."""
    form = steps.load_recipe(str(DEMO))["recipe"]
    errors = validate({"recipe": form | change}, schema_of(retrain))
    assert any(message in str(error) for error in errors)


def test_two_values_of_one_setting_are_refused() -> None:
    """A client that adds to a deployment's stored recipe is told; the same value twice is none."""
    form = steps.load_recipe(str(DEMO))["recipe"]
    form["training"]["seed"] = form[ADVANCED]["training"]["seed"]
    assert as_recipe(form)["training"]["seed"] == 0
    form["training"]["seed"] = 3
    with pytest.raises(
        ParameterTypeError, match=r"advanced.training have different values of seed"
    ):
        retrain.validate_parameters({"recipe": form})
