"""The manifest of a run: code, libraries, machine and seeds."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from tasks.contracts import digest
from tasks.contracts.recipe import Recipe
from tasks.processes import device

LIBRARIES: tuple[str, ...] = (
    "precis",
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
)
LIBRARIES += ("accelerate", "prefect", "mlflow", "evaluate", "boto3", "numpy")


def manifest(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Facts to reproduce a run by; data and model digests are in the run's step results."""
    return {
        "git": _git(Path(__file__).parent),
        "folder": folder.name,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": device.compute(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "installed_digest": digest.of_value(_installed()),
        "base": {"model": recipe.base.model, "revision": recipe.base.revision},
        "seeds": {"training": recipe.training.seed, "bootstrap": recipe.gate.seed},
    }


def _installed() -> list[str]:
    """Name and version of every distribution, as in the names of their folders (PEP 376).

    importlib.metadata would read a file of each: half a second for two hundred.
    """
    names = {path.stem for entry in sys.path for path in Path(entry).glob("*.dist-info")}
    return sorted(names)


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that this code runs from; None if it is no checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(git("status", "--porcelain"))}
