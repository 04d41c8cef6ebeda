"""Arguments and options that several verbs share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer


def model_name(text: str | None) -> str | None:
    """A registered model's name, as recipes may give it."""
    from tasks.contracts.recipe import NAME

    if text is not None and not re.match(NAME, text):
        raise typer.BadParameter(f"{text!r} is no model's name: letters, digits and _ . - only")
    return text


RecipeFile = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="A YAML file, e.g. deployments/recipes/demo.yaml."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting, e.g. training.seed=1; repeatable."
    ),
]
Show = Annotated[
    int,
    typer.Option(
        "--show",
        min=0,
        max=100,
        metavar="ROWS",
        help="Print the first training rows as the model sees them: what is masked, and what is learned.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
ModelName = Annotated[
    str, typer.Argument(metavar="NAME", help="The registered model.", callback=model_name)
]
OptionalModelName = Annotated[
    str | None, typer.Argument(metavar="NAME", help="The registered model.", callback=model_name)
]
