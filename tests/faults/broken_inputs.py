"""Broken inputs: recipes, data and bases of which each has one fault, made from nothing, always the same.

    python tests/faults/broken_inputs.py OUT     a folder a case, with recipe.yaml, data and base

`cases()` gives them all. Each is to be refused by `precis check` with a message that says what and where.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROWS = 60
Make = Callable[[Path, Path], Path]


@dataclass(frozen=True)
class Case:
    """One fault. `make(folder, base)` writes it into an empty folder, with the whole tiny base `base`."""

    name: str
    make: Make  # returns the recipe's path
    words: str  # a regular expression that the message holds


def rows(count: int = ROWS) -> list[dict[str, Any]]:
    """Short dialogues with summaries, all different."""
    return [
        {
            "id": f"r{i}",
            "dialogue": f"Ann: did you bring lamp {i}?\nBob: Yes, number {i} is by door {i * 7}.",
            "summary": f"Bob left lamp {i} by door {i * 7}.",
        }
        for i in range(count)
    ]


def jsonl(path: Path, values: list[Any]) -> None:
    """One value a line."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def recipe_of(folder: Path, base: Path, **parts: Any) -> dict[str, Any]:
    """A whole recipe over data.jsonl, which is written too; `parts` are groups that differ."""
    jsonl(folder / "data.jsonl", rows())
    return {
        "name": "broken",
        "data": {"train": str(folder / "data.jsonl"), "evaluation_share": 0.6},
        "base": {"model": str(base)},
        "training": {"max_length": 256},
        "evaluation": {"max_new_tokens": 32},
        "gate": {"feedback": "open"},  # all evaluation rows decide: enough to promote
    } | parts


def write_recipe(folder: Path, values: dict[str, Any]) -> Path:
    """recipe.yaml with these settings."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def cases() -> list[Case]:
    """All broken inputs, names unique, in a fixed order."""
    from broken_bases import BASES
    from broken_data import DATA
    from broken_recipes import RECIPES

    return [*RECIPES, *DATA, *BASES]


def main(out: Path) -> None:
    """Write every case below `out`."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import tiny

    base = tiny.make_tiny_base(out / "base")
    for case in cases():
        folder = out / case.name
        folder.mkdir(parents=True)
        case.make(folder, base)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
