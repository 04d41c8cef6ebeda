"""The flows' parameters as the Prefect UI's form shows them.

Prefect puts a parameter's own name over its Field's title, and spares json_schema_extra.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tasks.contracts.recipe import NAME, Recipe


def _shown(title: str, description: str = "", **rules: Any) -> Any:
    said: Any = {"title": title} | ({"description": description} if description else {})
    return Field(json_schema_extra=said, **rules)


OneRecipe = Annotated[Recipe, _shown("Recipe")]
IfBusy = Annotated[
    Literal["wait", "end"],
    _shown(
        "If this model is being retrained already",
        "wait: this run follows it. end: this run does nothing.",
    ),
]
ModelName = Annotated[
    str, _shown("Registered model", "Its name in the MLflow registry.", pattern=NAME)
]
FormerVersion = Annotated[
    int | None, _shown("Version", "A former champion's; none: the one before the champion.")
]
WithApproval = Annotated[
    bool,
    _shown("Ask first", "Pause, once that version is loaded and checked, until someone agrees."),
]
RetrainDeployment = Annotated[
    str | None, _shown("Deployment to start", "None: retrain/NAME, with the recipe's name.")
]
