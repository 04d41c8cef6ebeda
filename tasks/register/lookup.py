"""Which logged model a name stands for, as `precis ask` and MLflow write them; changes nothing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from tasks.contracts.errors import RegistryError
from tasks.register.claims import ALIAS, DIGEST

PREFIX = "models:/"
LISTED = 10


@dataclass(frozen=True)
class Logged:
    """A logged model: its URI `models:/m-...`, its package's digest, and how people call it."""

    uri: str
    digest: str
    shown: str


def look_up(client: Any, reference: str) -> Logged:
    """The model that NAME (its champion), NAME@ALIAS, NAME/VERSION or a `models:/` URI of one means.

    Raises RegistryError when there is none, with those there are, or when precis did not make it.
    """
    wanted = reference.removeprefix(PREFIX)
    try:
        if reference.startswith(PREFIX) and "/" not in wanted and "@" not in wanted:
            found = client.get_logged_model(wanted)
            return _made_here(f"{PREFIX}{wanted}", found.tags, reference)
        name, mark, rest = wanted.partition("@" if "@" in wanted else "/")
        model = _model(client, name)
        number = _numbered(name, rest) if mark == "/" else _aliased(model, rest or ALIAS)
        version = _version(client, name, number)
        return _made_here(version.source, version.tags, f"{name} v{number}")
    except MlflowException as error:
        if _absent(error):
            raise RegistryError(
                f"{reference}: there is no such model; see the MLflow UI"
            ) from error
        raise RegistryError(f"MLflow registry, {reference}: {error}") from error


def _model(client: Any, name: str) -> Any:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if not _absent(error):
            raise
    there = [model.name for model in client.search_registered_models()]
    near = difflib.get_close_matches(name, there, n=1)
    some = ", ".join(there[:LISTED]) + ("..." if len(there) > LISTED else "")
    raise RegistryError(
        f"no model {name!r} is registered{f'; nearest: {near[0]!r}' if near else ''} "
        f"(there {'are' if some else 'is'}: {some or 'none'}); correct the name, or set "
        "MLFLOW_TRACKING_URI to the store that has it"
    )


def _aliased(model: Any, alias: str) -> int:
    if alias in model.aliases:
        return int(model.aliases[alias])
    there = ", ".join(f"{name} (v{number})" for name, number in model.aliases.items()) or "none"
    raise RegistryError(
        f"model {model.name!r} has no alias {alias!r} (it has: {there}); name one of these, or a "
        f"version: {model.name}/1"
    )


def _numbered(name: str, text: str) -> int:
    if not text.isdecimal():
        raise RegistryError(
            f"{name}/{text}: a version is a number ({name}/1); an alias is written {name}@{ALIAS}"
        )
    return int(text)


def _version(client: Any, name: str, number: int) -> Any:
    try:
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        if not _absent(error):
            raise
    there = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
    raise RegistryError(
        f"model {name!r} has no version {number}; it has: {', '.join(map(str, there)) or 'none'}"
    )


def _made_here(uri: str, tags: dict[str, str], shown: str) -> Logged:
    if DIGEST not in tags:
        raise RegistryError(
            f"{shown} was not made by precis (it lacks the tag {DIGEST}), so how it is asked is not "
            "known; use MLflow itself, or name another version"
        )
    return Logged(uri, tags[DIGEST], shown)


def _absent(error: MlflowException) -> bool:
    return bool(error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST))
