"""docs/recipe.md, from recipe.py: `python -m tasks.contracts.recipe_reference > docs/recipe.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tasks.contracts.recipe import Recipe

TOP = """# Every setting of a recipe

Made by `make docs` from tasks/contracts/recipe.py; a test holds it up to date.

A recipe is a YAML file with these keys, in groups. It holds only what differs from the defaults;
`--set data.train_rows=500` changes a setting for one run. Unknown keys and values that are not allowed stop
a run before it starts, all problems at once. *None* is `null` in YAML, and the default where a setting has
it; *required* settings have no default.
"""
HEAD = """| setting | default | allowed | what it does, and why |
|---|---|---|---|"""
TYPES = {
    "object": "names and their values",
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true, false",
}
Schema = dict[str, Any]


def page() -> str:
    """The page as Markdown: a table for each group of settings, in the order of recipe.py."""
    sections = [TOP, _table(Recipe, "", nested=False)]
    for name, field in _fields(Recipe):
        if group := _group(field):
            sections += [f"## `{name}`\n\n{group.__doc__}\n", _table(group, f"{name}.")]
    return "\n".join(sections)


def settings(
    model: type[BaseModel] = Recipe, prefix: str = "", nested: bool = True
) -> Iterator[tuple[str, FieldInfo, Schema]]:
    """Each setting's full key (`data.fields.id`), its field, and its JSON schema."""
    properties = model.model_json_schema()["properties"]
    for name, field in _fields(model):
        group = _group(field)
        if not group:
            yield prefix + name, field, properties[name]
        elif nested:
            yield from settings(group, f"{prefix}{name}.")


def allowed(schema: Schema) -> str:
    """The values that a JSON schema allows, as a reader would say them."""
    if choices := schema.get("anyOf"):
        return " or ".join("none" if c == {"type": "null"} else allowed(c) for c in choices)
    if "$ref" in schema:  # a group that may be left out: only Fields is one
        return "settings as in `data.fields`"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        if pair := schema.get("prefixItems"):
            return f"a list of {len(pair)}: {allowed(pair[0])}"
        return f"list of {allowed(schema['items'])}"
    pattern = schema.get("pattern")
    return f"text like `{pattern}`" if pattern else TYPES[schema["type"]] + _bounds(schema)


def _bounds(schema: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {_number(schema[name])}" for name, sign in signs.items() if name in schema]
    return f" {' and '.join(bounds)}" if bounds else ""


def _number(value: float) -> str:
    return "2^32" if value == 2**32 else f"{value:,g}" if value < 1 else f"{int(value):,}"


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Each field by its name in a recipe."""
    for name, field in model.model_fields.items():
        yield field.alias or name, field


def _group(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _table(model: type[BaseModel], prefix: str, nested: bool = True) -> str:
    rows = [
        f"| `{key}` | {_default(field)} | {allowed(schema)} | *{field.title}.* {field.description} |"
        for key, field, schema in settings(model, prefix, nested)
    ]
    return "\n".join([HEAD, *rows, ""])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "none"
    return f"`{json.dumps(field.default)}`"


if __name__ == "__main__":
    print(page(), end="")
