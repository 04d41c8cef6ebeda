"""A recipe as the form of Prefect's UI shows it: what people change first, the rest under Advanced settings.

The form draws the JSON schema of the flow's parameter and cannot fold a group away. So the settings that
are not in COMMON stand in groups of their own below `advanced`, and a group that a recipe leaves at its
defaults is null, which the form shows as one line. A plain recipe, as a YAML file holds it, is taken as well.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, GetJsonSchemaHandler

from tasks.contracts.recipe import Recipe

ADVANCED = "advanced"
# Required ones, and the dozen that people change; groups that are not named are all advanced.
COMMON: dict[str, tuple[str, ...]] = {
    "data": ("train", "evaluation", "train_rows", "evaluation_rows"),
    "base": ("model", "revision"),
    "prompt": ("template",),
    "adapter": ("r",),
    "training": ("num_train_epochs", "learning_rate", "max_length"),
    "evaluation": ("max_new_tokens",),
    "gate": ("metric", "approval"),
}
GROUPS: dict[str, type[BaseModel]] = {
    info.alias or name: info.annotation
    for name, info in Recipe.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
}


def as_form(recipe: Recipe) -> dict[str, Any]:
    """All settings as JSON values in the form's shape; an advanced group at its defaults is None."""
    values = recipe.model_dump(mode="json")
    advanced: dict[str, Any] = {}
    for group in GROUPS:
        common, rest = _split(group, values.pop(group))
        if common:
            values[group] = common
        advanced[group] = None if rest == _defaults(group) else rest
    return values | {ADVANCED: advanced}


def as_recipe(values: Any) -> Any:
    """The plain recipe of values in the form's shape; anything else is returned as it is.

    Raises ValueError for a setting that stands in both places with different values.
    """
    if not isinstance(values, dict) or ADVANCED not in values:
        return values
    advanced = values[ADVANCED] or {}
    if not isinstance(advanced, dict):
        raise ValueError(f"recipe.{ADVANCED} holds groups of settings, not {advanced!r}")
    plain = {name: value for name, value in values.items() if name != ADVANCED}
    for group, rest in advanced.items():
        if rest is None:
            continue
        common = plain.get(group) or {}
        if not isinstance(rest, dict) or not isinstance(common, dict):
            raise ValueError(f"recipe.{group} and recipe.{ADVANCED}.{group} hold settings by name")
        if twice := sorted(key for key in rest if key in common and rest[key] != common[key]):
            raise ValueError(
                f"recipe.{group} and recipe.{ADVANCED}.{group} have different values of "
                f"{', '.join(twice)}: remove one; a plain recipe needs no {ADVANCED}"
            )
        plain[group] = common | rest
    return plain


class FormSchema:
    """Annotation of a flow's parameter: its JSON schema is the form's, or the common settings' alone.

    What the schema leaves out keeps the deployment's value: the form sends it as it came.
    """

    def __init__(self, *, advanced: bool = True) -> None:
        self.advanced = advanced

    def __get_pydantic_json_schema__(
        self, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The schema of the form, with its groups in the order of COMMON."""
        recipe = handler.resolve_ref_schema(handler(core_schema))
        groups = {
            name: handler.resolve_ref_schema(_referred(recipe["properties"][name]))
            for name in GROUPS
        }
        shown = {"name": recipe["properties"]["name"]}
        shown |= {name: _common_schema(name, groups[name]) for name in COMMON}
        if self.advanced:
            shown[ADVANCED] = {
                "type": "object",
                "title": "Advanced settings",
                "description": "Defaults: all of a group are as docs/recipe.md has them.",
                "properties": _in_order(
                    {name: _advanced_schema(name, group) for name, group in groups.items()}
                ),
                "additionalProperties": False,
            }
        return {
            "type": "object",
            "properties": _in_order(shown),
            "required": recipe["required"],
            # A plain recipe is valid too, and a name that is no setting is not.
            "propertyNames": {"enum": [*recipe["properties"], ADVANCED]},
        }


def _split(group: str, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The common settings of a group, and the advanced ones."""
    common = COMMON.get(group, ())
    first = {name: values[name] for name in common if name in values}
    return first, {name: value for name, value in values.items() if name not in common}


def _defaults(group: str) -> dict[str, Any]:
    """The advanced settings' defaults as JSON values."""
    model = GROUPS[group]
    required = {name: "-" for name, info in model.model_fields.items() if info.is_required()}
    return _split(group, model(**required).model_dump(mode="json"))[1]


def _common_schema(name: str, group: dict[str, Any]) -> dict[str, Any]:
    """A group with its common settings."""
    common = {key: group["properties"][key] for key in COMMON[name]}
    schema = {
        "type": "object",
        "title": _title(name),
        "properties": _in_order(common),
        "propertyNames": {"enum": list(group["properties"])},
    }
    if required := [key for key in group.get("required", ()) if key in common]:
        schema["required"] = required
    return schema


def _advanced_schema(name: str, group: dict[str, Any]) -> dict[str, Any]:
    """A group with its other settings, or null."""
    rest = {
        key: value for key, value in group["properties"].items() if key not in COMMON.get(name, ())
    }
    return {
        "title": f"{_title(name)} (advanced)",
        "anyOf": [
            {"type": "null", "title": "Defaults"},
            {
                "type": "object",
                "title": "Settings",
                "properties": _in_order(rest),
                "additionalProperties": False,
            },
        ],
        "default": None,
    }


def _title(group: str) -> str:
    titles = {info.alias or name: info.title for name, info in Recipe.model_fields.items()}
    return titles[group] or group


def _referred(schema: dict[str, Any]) -> dict[str, Any]:
    """A field's reference to its group, which stands beside title and default."""
    inner = schema.get("allOf", [schema])[0]
    return {"$ref": inner["$ref"]}


def _in_order(properties: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Properties with the position by which Prefect's form sorts them."""
    return {
        name: schema | {"position": place}
        for place, (name, schema) in enumerate(properties.items())
    }
