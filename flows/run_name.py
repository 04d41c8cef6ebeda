"""The name of a flow run: as somebody typed it, or else after its model.

Prefect writes a flow's own name over whatever was typed into the form. What nobody typed is told by its
form: Prefect draws an adjective and an animal from the word lists of coolname.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from prefect.context import FlowRunContext


def typed_or_model() -> str:
    """`flow_run_name` of the flows that take a recipe."""
    name, parameters = _current()
    return name if _is_typed(name, parameters) else _model(parameters)


def typed_or_rollback() -> str:
    """`flow_run_name` of the flow rollback."""
    name, parameters = _current()
    return name if _is_typed(name, parameters) else f"rollback {parameters['name']}"


def typed() -> bool:
    """Whether somebody typed the name of the current flow run: it is neither drawn nor ours."""
    return _is_typed(*_current())


def _is_typed(name: str, parameters: dict[str, Any]) -> bool:
    ours = _model(parameters) if "recipe" in parameters else "rollback"
    return not is_drawn(name) and name != ours and not name.startswith(f"{ours} ")


def is_drawn(name: str) -> bool:
    """Whether Prefect may have drawn this name: two words of its lists."""
    words = name.split("-")
    return len(words) == 2 and all(word in _words() for word in words)


@cache
def _words() -> frozenset[str]:
    from coolname import data

    lists = [value.get("words", ()) for value in data.config.values() if isinstance(value, dict)]
    return frozenset(word for words in lists for word in words if isinstance(word, str))


def _current() -> tuple[str, dict[str, Any]]:
    """Name and parameters of the current flow run."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run.name, context.parameters or {}


def _model(parameters: dict[str, Any]) -> str:
    recipe = parameters["recipe"]
    return str(recipe["name"] if isinstance(recipe, dict) else recipe.name)
