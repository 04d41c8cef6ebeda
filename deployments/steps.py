"""Steps of prefect.yaml: build steps, for `prefect deploy`, and the pull step, for workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flows import home_folder, recipe_form, recipes

HOME = "PRECIS_HOME"  # on a worker: the folder that a recipe's relative paths start from
CHECKOUT = Path(__file__).parents[1]


def load_recipe(path: str) -> dict[str, Any]:
    """Build step: a YAML recipe as parameter values, with all defaults, in the shape of the UI's form.

    Raises RecipeError naming every problem of the file; nothing is deployed then.
    """
    return {"recipe": recipe_form.as_form(recipes.load(Path(path)))}


def enter_home() -> dict[str, str]:
    """Pull step: on the worker, have the flow go to PRECIS_HOME, or else stay where its code is.

    Prefect puts the folder that a pull step ends in first on the flow's path, and a user's own flows.py
    in PRECIS_HOME would then be imported in place of ours. So the step ends in the folder of our code,
    and the flow goes to PRECIS_HOME once it is imported.
    """
    home = Path(os.environ.get(HOME) or CHECKOUT)
    if not os.environ.get(HOME) and not (home / "pyproject.toml").is_file():
        raise NotADirectoryError(
            f"{HOME} is not set on this worker, and precis does not run from a checkout: set it to "
            "the folder that holds your data and base models"
        )
    os.environ[home_folder.ENTER] = str(home.resolve())
    os.chdir(CHECKOUT)
    return {"directory": str(CHECKOUT)}


def install_automations() -> dict[str, Any]:
    """Build step of the last deployment: install the automations and limits of all deployments."""
    from deployments import automations

    return {"automations": automations.install()}
