"""Read recipes: YAML plus `--set key=value`; every problem at once, with the nearest right key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from flows import yaml_file
from tasks.contracts.credentials import redact
from tasks.contracts.errors import RecipeError
from tasks.contracts.recipe import Recipe

# Names in TRL, PEFT, Axolotl, LLaMA-Factory and daily speech that are not close to ours in spelling.
OTHER_NAMES = {
    "lr": "training.learning_rate",
    "batch_size": "training.per_device_train_batch_size",
    "micro_batch_size": "training.per_device_train_batch_size",
    "cutoff_len": "training.max_length",
    "sequence_len": "training.max_length",
    "lora_r": "adapter.r",
    "lora_rank": "adapter.r",
    "rank": "adapter.r",
    "load_in_4bit": "base.quantization",
    "load_in_8bit": "base.quantization",
    "model_name_or_path": "base.model",
    "base_model": "base.model",
}
# What to say for pydantic's wrong types.
TYPE_MESSAGES = {
    "model_type": "must be a group of settings, one per line",
    "string_type": "must be a string",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
}


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with dotted `key=value` overrides.

    Raises RecipeError naming every problem, where it is, and how to fix it.
    """
    values = yaml_file.read(path)
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(
            "\n".join(f"{path}: {_explain(problem)}" for problem in error.errors())
        ) from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override}: write it as key=value, e.g. training.seed=1")
    *groups, last = key.strip().split(".")
    for group in groups:
        inner = values.setdefault(group, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: {group} is a value, not a group of settings")
        values = inner
    values[last] = yaml_file.value(text)


def _explain(problem: Any) -> str:
    setting = ".".join(str(part) for part in problem["loc"] if not _is_union_branch(part))
    if problem["type"] == "extra_forbidden":
        return f"{setting}: unknown key{_nearest(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{setting}: is required; add it"
    text = TYPE_MESSAGES.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    is_group = isinstance(problem["input"], dict)  # a group's rule names the settings it is about
    return f"{setting or 'recipe'}: {text}" + (
        "" if is_group else f" (it is {_shown(problem['input'])})"
    )


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    text = redact(text)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _is_union_branch(part: Any) -> bool:
    return isinstance(part, str) and any(mark in part for mark in "[](")


def _nearest(location: tuple[Any, ...]) -> str:
    model: type[BaseModel] | None = Recipe
    for part in location[:-1]:
        model = _group(model, str(part))
        if model is None:
            return ""
    names = list(_fields(model))
    if ours := OTHER_NAMES.get(str(location[-1])):
        return f"; did you mean {ours}?"
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    elsewhere = [
        f"{group}.{location[-1]}"
        for group, field in _fields(Recipe).items()
        if (inner := _model_in(field.annotation)) and location[-1] in _fields(inner)
    ]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(names)}"


def _group(model: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    field = _fields(model).get(name)
    return _model_in(field.annotation) if field else None


def _fields(model: type[BaseModel] | None) -> dict[str, Any]:
    """Its fields by their names in a recipe."""
    fields = model.model_fields if model else {}
    return {field.alias or name: field for name, field in fields.items()}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
