"""Who is champion: succession by claims, safe against crashes and against two at once.

In MLflow the last writer of an alias wins, so the alias only shows the champion; the versions decide.
A challenger that beat version C is created as a version with the tag `precis.succeeds: C`, and with C's
digest and run, since a registered model that is deleted and made again counts from 1. MLflow hands out
version numbers atomically, so of all versions that claim to succeed C the lowest number is the
successor; a later one is withdrawn, and its run is gated again, against the new champion. A claim is
finished when the alias points at it and it has the tag `precis.finished`; any process that finds an
unfinished claim finishes it. A claim is made after C was finished, so numbers rise along the
succession: the champion is the highest finished version.

MLflow has no compare-and-set. So before a version is written to or deleted by its number, it is read
again: it must still be the claim that was meant.

Over 250 lines: the succession is read in one place.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from tasks.contracts.errors import ChampionMoved, RegistryError
from tasks.register import version_tags
from tasks.register.version_tags import (
    COMPLETED_BY,
    DIGEST,
    FINISHED,
    NOBODY,
    RECORD,
    ROLLBACK_TO,
    RUN_ID,
    SUCCEEDS,
    TOKENIZER,
    Version,
)

__all__ = [
    "ALIAS",
    "COMPLETED_BY",
    "DIGEST",
    "FINISHED",
    "NOBODY",
    "RECORD",
    "ROLLBACK_TO",
    "RUN_ID",
    "SUCCEEDS",
    "TOKENIZER",
    "Version",
    "does_not_exist",
    "entries",
    "find_champion",
    "last_finished",
    "moved",
    "points_at",
    "reset_alias",
    "settle",
    "succeed",
    "versions",
]

ALIAS = "champion"
WRITE_TRIES, WRITE_PAUSE_SECONDS = 4, 0.2
ALIAS_READS, ALIAS_PAUSE_SECONDS = 5, 0.5


def find_champion(client: Any, name: str) -> Version | None:
    """The champion now, None when there is none: the one function that answers this.

    First finishes a claim that a dead or slower process left unfinished. Raises ChampionMoved when
    someone else moved the alias, RegistryError when MLflow fails.
    """
    try:
        return _finish_claims(client, name)
    except MlflowException as error:
        raise RegistryError(f"MLflow registry, model {name!r}: {error}") from error


def succeed(
    client: Any,
    name: str,
    expected: Version | None,
    *,
    source: str,
    tags: dict[str, str],
    description: str,
) -> Version | None:
    """Claim the succession of the champion `expected` (None: there was none) and finish the claim.

    `source` is the logged model's URI; `tags` hold at least DIGEST and RUN_ID. Returns the new
    champion, or None when someone else succeeded `expected` first, or when another model has its number
    by now: gate again, against them. Calling it again after a crash finds the run's own claim instead of
    making a second one.
    """
    try:
        champion = _finish_claims(client, name)
        if champion is not None and champion.run_id == tags[RUN_ID]:
            return champion
        if not _same(champion, expected):
            return None
        ensure_model(client, name)
        created = client.create_model_version(
            name,
            source,
            run_id=tags[RUN_ID],
            tags=tags | version_tags.claim_tags(expected),
            description=description,
            model_id=source.removeprefix("models:/"),
        )
        _finish_claims(client, name)
        own = _find(versions(client, name), int(created.version))
        return own if own and own.finished and own.run_id == tags[RUN_ID] else None
    except MlflowException as error:
        raise RegistryError(f"MLflow registry, model {name!r}: {error}") from error


def settle(client: Any, name: str) -> Version | None:
    """The last promotion or rollback, open claims finished first, wherever the alias points.

    Raises RegistryError when MLflow fails.
    """
    try:
        return _settle(client, name)
    except MlflowException as error:
        raise RegistryError(f"MLflow registry, model {name!r}: {error}") from error


def points_at(client: Any, name: str) -> int | None:
    """The version that the alias names now; None without one. Raises RegistryError."""
    try:
        return _alias(client, name)
    except MlflowException as error:
        raise RegistryError(f"MLflow registry, model {name!r}: {error}") from error


def versions(client: Any, name: str) -> list[Version]:
    """All versions of a model that precis made, in number order.

    Raises RegistryError that names every tag of theirs which cannot be read.
    """
    return version_tags.read(name, entries(client, name))


def entries(client: Any, name: str) -> list[Any]:
    """All versions of a model as MLflow lists them, of precis and of others."""
    listed: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        listed += page
        token = page.token
        if not token:
            return listed


def reset_alias(client: Any, name: str) -> Version | None:
    """Put the alias back on the last finished version, after someone else moved it. Raises RegistryError."""
    try:
        return _align_alias(client, name)
    except MlflowException as error:
        raise RegistryError(f"MLflow registry, model {name!r}: {error}") from error


def _finish_claims(client: Any, name: str) -> Version | None:
    """Finish the open claim if there is one, withdraw those that lost; the champion then."""
    for attempt in range(ALIAS_READS):
        last = _settle(client, name)
        alias = _alias(client, name)
        if alias == (last.number if last else None):
            return last
        # Another process may be between two writes; only a lasting difference is an error.
        if attempt < ALIAS_READS - 1:
            time.sleep(ALIAS_PAUSE_SECONDS)
    raise moved(name, versions(client, name), alias)


def _settle(client: Any, name: str) -> Version | None:
    """Finish the open claim, withdraw those that lost; the last finished version then."""
    while True:
        existing = versions(client, name)
        last = last_finished(existing)
        open_claims = [v for v in existing if not v.finished and v.follows(last)]
        if not open_claims:
            break
        _finish(client, name, open_claims[0])
    for lost in (v for v in existing if not v.finished and not v.follows(last)):
        _withdraw(client, name, lost)
    return last


def _finish(client: Any, name: str, claim: Version) -> None:
    """Move the alias to a claim, then mark it finished; crash-safe in that order."""
    if not claim.same_claim(_find(versions(client, name), claim.number)):
        return  # the registered model was deleted meanwhile, or the version was: read again
    number = claim.number
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _retry(lambda: client.set_registered_model_alias(name, ALIAS, str(number)))
    _note_on_model(client, name, claim)
    _retry(lambda: client.set_model_version_tag(name, str(number), FINISHED, now))
    _align_alias(client, name)


def _note_on_model(client: Any, name: str, claim: Version) -> None:
    """Name the version on its logged model's page, as MLflow's server does by itself."""
    model_id = claim.source.removeprefix("models:/")
    if model_id == claim.source:
        return
    try:
        tags = client.get_logged_model(model_id).tags
    except MlflowException as error:
        if does_not_exist(error):  # deleted: it has no page
            return
        raise
    noted, own = _entries_in(tags.get(MLFLOW_MODEL_VERSIONS)), (name, str(claim.number))
    if own not in noted:
        value = json.dumps([{"name": name, "version": number} for name, number in [*noted, own]])
        _retry(lambda: client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: value}))


def _entries_in(tag: str | None) -> list[tuple[str, str]]:
    """Name and number of each version in MLflow's own tag; none where someone wrote it otherwise."""
    try:
        return [(str(entry["name"]), str(entry["version"])) for entry in json.loads(tag or "[]")]
    except (ValueError, KeyError, TypeError):
        return []


def _align_alias(client: Any, name: str) -> Version | None:
    """Point the alias at the last finished version; that version.

    Each writer of the alias calls this afterwards: if it slept between reading and writing, others may
    have promoted since, and theirs counts. So of any number of writers the last one leaves it right.
    """
    while last := last_finished(versions(client, name)):
        if _alias(client, name) == last.number:
            return last
        client.set_registered_model_alias(name, ALIAS, str(last.number))
    return None


def _retry(write: Callable[[], Any]) -> None:
    """Write again when MLflow refused one of two writes to the same row; both write the same value."""
    for attempt in range(WRITE_TRIES):
        try:
            write()
            return
        except MlflowException:
            if attempt == WRITE_TRIES - 1:
                raise
            time.sleep(WRITE_PAUSE_SECONDS * (attempt + 1))


def _withdraw(client: Any, name: str, lost: Version) -> None:
    now = _find(versions(client, name), lost.number)
    if not lost.same_claim(now) or (now and now.finished):
        return
    try:
        client.delete_model_version(name, str(lost.number))
    except MlflowException as error:
        if not does_not_exist(error):  # else another process withdrew it
            raise


def _find(existing: list[Version], number: int) -> Version | None:
    return next((v for v in existing if v.number == number), None)


def _same(champion: Version | None, expected: Version | None) -> bool:
    """Whether it is still the champion that was judged: number, model and run."""
    return expected.same_claim(champion) if expected else champion is None


def last_finished(existing: Sequence[Version]) -> Version | None:
    """The last promotion or rollback that took place among these versions."""
    return max((v for v in existing if v.finished), key=lambda v: v.number, default=None)


def _alias(client: Any, name: str) -> int | None:
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if does_not_exist(error):
            return None
        raise
    return int(aliases[ALIAS]) if ALIAS in aliases else None


def does_not_exist(error: MlflowException) -> bool:
    """Whether MLflow says that what was asked for does not exist."""
    return bool(error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST))


def ensure_model(client: Any, name: str) -> None:
    """Make a registered model where there is none of this name."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def moved(name: str, existing: Sequence[Version], alias: int | None) -> ChampionMoved:
    """The error for an alias that is not where the last promotion put it; its commands do what they say.

    `existing`: the versions that precis made.
    """
    last = last_finished(existing)
    state = f"points at version {alias}" if alias else "is not set"
    where = f"model {name!r}: alias {ALIAS!r} {state}"
    if last is None:
        return ChampionMoved(
            f"{where}, a version that precis did not promote; give the recipe another name, or remove the "
            f"alias: mlflow.MlflowClient().delete_registered_model_alias({name!r}, {ALIAS!r})"
        )
    where += f", but the last promotion is version {last.number}"
    undo = f"`precis rollback {name} --to {last.number}`"
    if alias is None:
        return ChampionMoved(f"{where}. If someone removed it by hand, {undo} sets it again")
    if any(version.finished and version.number == alias for version in existing):
        return ChampionMoved(
            f"{where}. If someone moved it by hand, make that official with `precis rollback {name} --to "
            f"{alias}`; to undo it, {undo}"
        )
    return ChampionMoved(
        f"{where}, and version {alias} never passed the gate. {undo} undoes it; to serve version {alias} "
        "beside the champion, give it an alias of another name"
    )
