"""The folder that a recipe's relative paths start from: a deployed flow goes there once it runs."""

from __future__ import annotations

import os

from flows import log_filter

OTHERS = 0o007  # the rights of all others
ENTER = "PRECIS_ENTER_HOME"  # set for a deployed flow run by its pull step, deployments/steps.py


def keep_private() -> None:
    """From here on this process and its children make no file that others than user and group can read.

    Data, logs and databases hold what people wrote; the usual umask leaves them open to all.
    """
    os.umask(os.umask(0o077) | OTHERS)


def enter() -> None:
    """Go to the folder that the pull step named; stay where it named none, as in `precis run`."""
    keep_private()
    if folder := os.environ.get(ENTER):
        log_filter.hide_known_errors()
        os.chdir(folder)
