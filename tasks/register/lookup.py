"""Which logged model a reference names, as `precis ask` and MLflow write references; changes nothing."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlflow.exceptions import MlflowException

from tasks.contracts.errors import RegistryError
from tasks.contracts.findings import Findings
from tasks.register.claims import (
    ALIAS,
    DIGEST,
    Version,
    does_not_exist,
    last_finished,
    points_at,
    versions,
)

PREFIX = "models:/"
MAX_LISTED = 10


@dataclass(frozen=True)
class LoggedModel:
    """A logged model: its URI `models:/m-...`, its package's digest, and its name in messages."""

    uri: str
    digest: str
    title: str


def resolve(client: Any, reference: str) -> LoggedModel:
    """The model of NAME (its champion), NAME@ALIAS, NAME/VERSION, or their `models:/` URIs.

    Raises RegistryError when there is none, naming those that exist, or when precis did not make it.
    """
    path = reference.removeprefix(PREFIX)
    try:
        if reference.startswith(PREFIX) and "/" not in path and "@" not in path:
            tags = client.get_logged_model(path).tags
            return _made_by_precis(f"{PREFIX}{path}", tags, reference)
        version = _named(client, path)
        name, number = version.name, int(version.version)
        return _made_by_precis(version.source, version.tags, f"{name} v{number}")
    except MlflowException as error:
        if does_not_exist(error):
            raise RegistryError(
                f"{reference}: there is no such model; see the MLflow UI"
            ) from error
        raise RegistryError(f"MLflow registry, {reference}: {error}") from error


def number_of(client: Any, reference: str) -> int:
    """The version that NAME, NAME@ALIAS or NAME/VERSION names.

    Raises RegistryError when there is none, naming those that exist.
    """
    try:
        return int(_named(client, reference.removeprefix(PREFIX)).version)
    except MlflowException as error:
        raise RegistryError(f"MLflow registry, {reference}: {error}") from error


def name_in(reference: str) -> str:
    """The model's name in NAME, NAME@ALIAS, NAME/VERSION."""
    path = reference.removeprefix(PREFIX)
    return path.partition("@" if "@" in path else "/")[0]


def version_of(
    client: Any, reference: str, existing: Sequence[Version], found: Findings
) -> Version | None:
    """The version among `existing` that is meant; NAME is what users are served: where the alias is now.

    None for one that is not among them, which is a difference. Raises RegistryError when there is none.
    """
    name = name_in(reference)
    is_exact = name != reference.removeprefix(PREFIX)
    number = number_of(client, reference) if is_exact else points_at(client, name)
    by_number = {version.number: version for version in existing}
    if number in by_number:
        return by_number[number]
    if number is not None:
        found.differences.append(
            f"model {name!r}, version {number} could not be checked: precis did not make it, or its tags "
            "cannot be read"
        )
    return None if is_exact else last_finished(existing)


def find_version(client: Any, reference: str) -> tuple[str, Version]:
    """The model's name and the version of NAME (its champion), NAME@ALIAS, NAME/VERSION or their URIs.

    Raises RegistryError as `number_of`, and for a version that precis did not make.
    """
    name, number = name_in(reference), number_of(client, reference)
    try:
        found = next((v for v in versions(client, name) if v.number == number), None)
    except MlflowException as error:
        raise RegistryError(f"MLflow registry, {reference}: {error}") from error
    if found is None:
        raise RegistryError(
            f"{name} v{number} was not made by precis (it has none of its tags), so what made it is not "
            "known; name another version"
        )
    return name, found


def _named(client: Any, path: str) -> Any:
    name, separator, rest = path.partition("@" if "@" in path else "/")
    model = _model(client, name)
    number = _number(name, rest) if separator == "/" else _aliased(model, rest or ALIAS)
    return _version(client, name, number)


def _model(client: Any, name: str) -> Any:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if not does_not_exist(error):
            raise
    names = [model.name for model in client.search_registered_models()]
    similar = difflib.get_close_matches(name, names, n=1)
    listed = ", ".join(names[:MAX_LISTED]) + ("..." if len(names) > MAX_LISTED else "")
    raise RegistryError(
        f"no model {name!r} is registered{f'; nearest: {similar[0]!r}' if similar else ''} "
        f"(there {'are' if listed else 'is'}: {listed or 'none'}); correct the name, or set "
        "MLFLOW_TRACKING_URI to the store that has it"
    )


def _aliased(model: Any, alias: str) -> int:
    if alias in model.aliases:
        return int(model.aliases[alias])
    aliases = ", ".join(f"{name} (v{number})" for name, number in model.aliases.items()) or "none"
    raise RegistryError(
        f"model {model.name!r} has no alias {alias!r} (it has: {aliases}); name one of these, or a "
        f"version: {model.name}/1"
    )


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise RegistryError(
            f"{name}/{text}: a version is a number ({name}/1); an alias is written {name}@{ALIAS}"
        )
    return int(text)


def _version(client: Any, name: str, number: int) -> Any:
    try:
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        if not does_not_exist(error):
            raise
    numbers = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
    raise RegistryError(
        f"model {name!r} has no version {number}; it has: {', '.join(map(str, numbers)) or 'none'}"
    )


def _made_by_precis(uri: str, tags: dict[str, str], title: str) -> LoggedModel:
    if DIGEST not in tags:
        raise RegistryError(
            f"{title} was not made by precis (it lacks the tag {DIGEST}), so its prompt is not "
            "known; use MLflow itself, or name another version"
        )
    return LoggedModel(uri, tags[DIGEST], title)
