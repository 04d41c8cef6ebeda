"""Reading recipes: YAML plus `--set key=value`, every problem at once, the nearest right key named."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tasks.errors import RecipeError
from tasks.recipe import Recipe


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with dotted `key=value` overrides.

    Raises RecipeError naming every problem, where it is, and the mend.
    """
    values = _read(path)
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(
            "\n".join(f"{path}: {_explain(problem)}" for problem in error.errors())
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe (looked from {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of settings; see deployments/recipes/")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found or not key.strip():
        raise RecipeError(f"--set {override}: write it as key=value, e.g. training.seed=1")
    *groups, last = key.strip().split(".")
    for group in groups:
        inner = values.setdefault(group, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: {group} is a value, not a group of settings")
        values = inner
    try:
        values[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        values[last] = text


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"] if not _is_union_branch(part))
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{where}: is needed; add it"
    text = problem["msg"].removeprefix("Value error, ")
    whole = isinstance(problem["input"], dict)  # a group's own rule names the settings it means
    return f"{where or 'recipe'}: {text}" + ("" if whole else f" (it is {problem['input']!r})")


def _is_union_branch(part: Any) -> bool:
    return isinstance(part, str) and any(mark in part for mark in "[](")


def _nearest(location: tuple[Any, ...]) -> str:
    model: type[BaseModel] | None = Recipe
    for part in location[:-1]:
        model = _group(model, str(part))
        if model is None:
            return ""
    names = list(model.model_fields) if model else []
    near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    elsewhere = [
        f"{group}.{location[-1]}"
        for group, field in Recipe.model_fields.items()
        if (inner := _model_in(field.annotation)) and location[-1] in inner.model_fields
    ]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(names)}"


def _group(model: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    field = model.model_fields.get(name) if model else None
    return _model_in(field.annotation) if field else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
