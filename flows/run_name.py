"""The name of a flow run: as somebody typed it, or else after its model.

Prefect writes a flow's own name over whatever was typed into the form. What nobody typed is told by its
form: Prefect draws an adjective and an animal from the word lists of coolname.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, get_args

from prefect.context import FlowRunContext

from tasks.contracts.records import Ending

DATA_DIGITS = 8  # of the data set's digest
ENDED = re.compile(rf"( [0-9a-f]{{{DATA_DIGITS}}} ({'|'.join(get_args(Ending))}))?")


def typed_or_model() -> str:
    """`flow_run_name` of the flows that take a recipe."""
    name, parameters = _current()
    return name if _is_typed(name, parameters) else _model(parameters)


def typed_or_rollback() -> str:
    """`flow_run_name` of the flow rollback."""
    name, parameters = _current()
    return name if _is_typed(name, parameters) else _of_rollback(parameters)


def typed() -> bool:
    """Whether somebody typed the name of the current flow run: it is neither drawn nor ours."""
    return _is_typed(*_current())


def after_verdict(model: str, data_digest: str, ending: Ending) -> str:
    """The name of a run that is decided."""
    return f"{model} {data_digest[:DATA_DIGITS]} {ending}"


def _is_typed(name: str, parameters: dict[str, Any]) -> bool:
    if "recipe" not in parameters:
        return not is_drawn(name) and name != _of_rollback(parameters)
    model = _model(parameters)
    # Ours is the whole of it: "demo with more rows" is somebody's.
    is_ours = name.startswith(model) and ENDED.fullmatch(name.removeprefix(model)) is not None
    return not is_drawn(name) and not is_ours


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


def _of_rollback(parameters: dict[str, Any]) -> str:
    return f"rollback {parameters['name']}"


def _model(parameters: dict[str, Any]) -> str:
    recipe = parameters["recipe"]
    return str(recipe["name"] if isinstance(recipe, dict) else recipe.name)
