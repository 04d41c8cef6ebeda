"""Moves of the champion's alias that nobody was told of yet, and the note that they were told.

A promotion or rollback is told once its version is finished; that version's tag says whether it was. A move
by hand has no version: the registered model's tag says where the alias was told to be, after how many such
moves. So each move is told once, by the process that sees it first, also where a process ends in between.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import NAMESPACE_URL, UUID, uuid5

from mlflow.exceptions import MlflowException

from tasks.contracts.errors import RegistryError
from tasks.register import claims
from tasks.register.version_tags import TOLD, UNTOLD, Version

BY_HAND = "precis.alias_told"  # of the registered model: `_Told` as JSON
Why = Literal["promotion", "rollback", "by hand"]


@dataclass(frozen=True)
class Place:
    """Where the alias points: a version and its model's digest (empty: precis did not make it)."""

    version: int
    digest: str


@dataclass(frozen=True)
class Move:
    """One move of the alias. `before`, `after`: None where it pointed, or points, at nothing."""

    id: UUID  # the same for every process that sees this move
    name: str
    before: Place | None
    after: Place | None
    why: Why
    run: str | None  # the MLflow run that made it
    note: _Told | None = None  # None: the note is on the version

    @property
    def headline(self) -> str:
        """The move in a sentence."""
        was = f"v{self.before.version}" if self.before else "none"
        if self.after is None:
            return f"{self.name} has no champion any more: the alias was removed ({self.why}); it was {was}"
        return f"{self.name} v{self.after.version} is champion ({self.why}); it was {was}"


@dataclass(frozen=True)
class _Told:
    """Where the alias was told to be while version `official` was the last promotion or rollback."""

    official: int
    at: int | None
    moves: int  # by hand, of this registered model


@dataclass(frozen=True)
class _Seen:
    """One look at the registry."""

    existing: Sequence[Version]
    alias: int | None
    created: int  # milliseconds: of a model that was deleted and made again it differs
    told: _Told | None

    @property
    def last(self) -> Version | None:
        return claims.last_finished(self.existing)

    @property
    def known(self) -> int | None:
        """Where the alias is known to be."""
        if self.told and self.last and self.told.official == self.last.number:
            return self.told.at
        return self.last.number if self.last else None

    def place(self, number: int | None) -> Place | None:
        if not number:
            return None
        found = next((v.digest for v in self.existing if v.number == number), "")
        return Place(number, found)


def untold(client: Any, name: str, back: Why = "by hand") -> list[Move]:
    """The moves that were not told, oldest first. `back`: why an alias is back on the last promotion.

    Reads only. An alias that is elsewhere is looked at again for a moment: another process may be between
    two writes. Raises RegistryError.
    """
    try:
        seen = _look(client, name)
        for _ in range(claims.ALIAS_READS - 1):
            if seen is None or seen.alias == seen.known:
                break
            time.sleep(claims.ALIAS_PAUSE_SECONDS)
            seen = _look(client, name)
    except MlflowException as error:
        raise RegistryError(f"MLflow registry, model {name!r}: {error}") from error
    if seen is None or seen.last is None:
        return []
    moves = [_by_claim(name, seen, v) for v in seen.existing if v.finished and v.told == UNTOLD]
    if seen.alias != seen.known and not _is_claimed(seen):
        why = back if seen.alias == seen.last.number else "by hand"
        moves.append(_by_hand(name, seen, seen.last, why))
    return moves


def note(client: Any, move: Move) -> None:
    """Note in the registry that a move was told. Raises MlflowException."""
    if move.note:
        client.set_registered_model_tag(move.name, BY_HAND, json.dumps(asdict(move.note)))
    elif move.after:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        client.set_model_version_tag(move.name, str(move.after.version), TOLD, now)


def _look(client: Any, name: str) -> _Seen | None:
    """None: there is no such registered model."""
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if claims.does_not_exist(error):
            return None
        raise
    alias = model.aliases.get(claims.ALIAS)
    told = _parse(name, model.tags[BY_HAND]) if BY_HAND in model.tags else None
    existing = claims.versions(client, name)
    return _Seen(existing, int(alias) if alias else None, model.creation_timestamp, told)


def _parse(name: str, text: str) -> _Told:
    try:
        value = json.loads(text)
        at = value["at"]
        return _Told(int(value["official"]), int(at) if at else None, int(value["moves"]))
    except (ValueError, TypeError, KeyError):
        raise RegistryError(
            f"model {name!r}: its tag {BY_HAND} holds {text[:40]!r} instead of where the alias was told to "
            f"be; mlflow.MlflowClient().delete_registered_model_tag({name!r}, {BY_HAND!r}) removes it"
        ) from None


def _is_claimed(seen: _Seen) -> bool:
    """Whether the alias is on a promotion that is not finished: it is told when it is."""
    return any(
        v.number == seen.alias and not v.finished and v.follows(seen.last) for v in seen.existing
    )


def _by_claim(name: str, seen: _Seen, version: Version) -> Move:
    before = version.succeeds
    if seen.told and seen.told.official == version.succeeds:  # moved by hand in between
        before = seen.told.at or 0
    place = seen.place(before)
    if place and not place.digest and before == version.succeeds:
        place = replace(place, digest=version.succeeds_digest)  # it was deleted
    return Move(
        uuid5(NAMESPACE_URL, f"precis:{name}:{version.number}:{version.digest}:{version.run_id}"),
        name,
        place,
        Place(version.number, version.digest),
        "rollback" if version.rollback_to else "promotion",
        version.run_id,
    )


def _by_hand(name: str, seen: _Seen, last: Version, why: Why) -> Move:
    moves = (seen.told.moves if seen.told else 0) + 1
    path = f"{seen.known}:{seen.alias}:{moves}"
    return Move(
        uuid5(NAMESPACE_URL, f"precis:{name}:{seen.created}:{last.number}:{last.digest}:{path}"),
        name,
        seen.place(seen.known),
        seen.place(seen.alias),
        why,
        None,
        _Told(last.number, seen.alias, moves),
    )
