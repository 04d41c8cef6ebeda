"""The flows' parameters as the Prefect UI's form shows them.

Prefect replaces a Field's title by the parameter's name, but leaves json_schema_extra as it is.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from flows.recipe_form import FormSchema, as_recipe
from tasks.contracts.recipe import NAME, Recipe


def _form_field(title: str, description: str = "", **rules: Any) -> Any:
    schema: Any = {"title": title} | ({"description": description} if description else {})
    return Field(json_schema_extra=schema, **rules)


OneRecipe = Annotated[Recipe, BeforeValidator(as_recipe), FormSchema(), _form_field("Recipe")]
ShortRecipe = Annotated[
    Recipe, BeforeValidator(as_recipe), FormSchema(advanced=False), _form_field("Recipe")
]
IfBusy = Annotated[
    Literal["wait", "end"],
    _form_field(
        "If this model is being retrained already",
        "wait: this run follows it. end: this run does nothing.",
    ),
]
ModelName = Annotated[
    str, _form_field("Registered model", "Its name in the MLflow registry.", pattern=NAME)
]
FormerVersion = Annotated[
    int | None, _form_field("Version", "A former champion's; none: the champion before this one.")
]
WithApproval = Annotated[
    bool,
    _form_field(
        "Ask first", "Pause, once that version is loaded and checked, until someone agrees."
    ),
]
RetrainDeployment = Annotated[
    str | None, _form_field("Deployment to start", "None: retrain/NAME, with the recipe's name.")
]
