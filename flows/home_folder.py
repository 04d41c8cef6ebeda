"""The folder that a recipe's relative paths start from: a deployed flow goes there once it runs."""

from __future__ import annotations

import os

ENTER = "PRECIS_ENTER_HOME"  # set for a deployed flow run by its pull step, deployments/steps.py


def enter() -> None:
    """Go to the folder that the pull step named; stay where it named none, as in `precis run`."""
    if folder := os.environ.get(ENTER):
        os.chdir(folder)
