"""Who is champion: succession by claims, safe against crashes and against two at once.

In MLflow the last writer of an alias wins, so the alias only shows the champion; the versions decide.
A challenger that beat version C is created as a version with the tag `precis.succeeds: C`. MLflow
hands out version numbers atomically, so of all versions that claim to succeed C the lowest number is
the successor; a later one is withdrawn, and its run is gated again, against the new champion. A claim
is finished when the alias points at it and it has the tag `precis.finished`; any process that finds an
unfinished claim finishes it. A claim is made after C was finished, so numbers rise along the
succession: the champion is the highest finished version.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from tasks.contracts.errors import ChampionMoved, RegistryError

ALIAS = "champion"
SUCCEEDS, FINISHED = "precis.succeeds", "precis.finished"
DIGEST, RUN_ID = "precis.model_digest", "precis.run_id"
ROLLBACK_TO = "precis.rollback_to"
TOKENIZER = "precis.tokenizer_digest"
NOBODY = 0  # what the first champion succeeds
WRITE_TRIES, WRITE_PAUSE_SECONDS = 4, 0.2
ALIAS_READS, ALIAS_PAUSE_SECONDS = 5, 0.5


@dataclass(frozen=True)
class Version:
    """A model version that precis made."""

    number: int
    succeeds: int
    finished: bool
    digest: str
    run_id: str
    source: str
    created: datetime
    rollback_to: int | None
    description: str
    tokenizer: str = ""  # its digest; versions before gate.metric: loss have none on record


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
    client: Any, name: str, expected: int, *, source: str, tags: dict[str, str], description: str
) -> Version | None:
    """Claim the succession of version `expected` (NOBODY: none yet) and finish the claim.

    `source` is the logged model's URI; `tags` hold at least DIGEST and RUN_ID. Returns the new
    champion, or None when someone else succeeded `expected` first: gate again, against them.
    Calling it again after a crash finds the run's own claim instead of making a second one.
    """
    try:
        champion = _finish_claims(client, name)
        if champion is not None and champion.run_id == tags[RUN_ID]:
            return champion
        if (champion.number if champion else NOBODY) != expected:
            return None
        _ensure_model(client, name)
        created = client.create_model_version(
            name,
            source,
            run_id=tags[RUN_ID],
            tags=tags | {SUCCEEDS: str(expected)},
            description=description,
            model_id=source.removeprefix("models:/"),
        )
        _finish_claims(client, name)
        own = [v for v in versions(client, name) if v.number == int(created.version)]
        return own[0] if own and own[0].finished else None
    except MlflowException as error:
        raise RegistryError(f"MLflow registry, model {name!r}: {error}") from error


def versions(client: Any, name: str) -> list[Version]:
    """All versions of a model that precis made, in number order."""
    listed: list[Version] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        listed += [_version(entry) for entry in page if SUCCEEDS in entry.tags]
        token = page.token
        if not token:
            return sorted(listed, key=lambda version: version.number)


def reset_alias(client: Any, name: str) -> Version | None:
    """Put the alias back on the last finished version, after someone else moved it."""
    last = _last_finished(versions(client, name))
    if last:
        client.set_registered_model_alias(name, ALIAS, str(last.number))
    return last


def _finish_claims(client: Any, name: str) -> Version | None:
    """Finish the open claim if there is one, withdraw those that lost; the champion then."""
    for attempt in range(ALIAS_READS):
        while True:
            existing = versions(client, name)
            last = _last_finished(existing)
            position = last.number if last else NOBODY
            open_claims = [v for v in existing if not v.finished and v.succeeds == position]
            if not open_claims:
                break
            _finish(client, name, open_claims[0].number)
        for lost in (v for v in existing if not v.finished and v.succeeds != position):
            _withdraw(client, name, lost.number)
        alias = _alias(client, name)
        if alias == (last.number if last else None):
            return last
        # Another process may be between two writes; only a lasting difference is an error.
        if attempt < ALIAS_READS - 1:
            time.sleep(ALIAS_PAUSE_SECONDS)
    raise _moved(name, last, alias)


def _finish(client: Any, name: str, number: int) -> None:
    """Move the alias to a claim, then mark it finished; crash-safe in that order."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _retry(lambda: client.set_registered_model_alias(name, ALIAS, str(number)))
    _retry(lambda: client.set_model_version_tag(name, str(number), FINISHED, now))
    # If this process slept between reading and writing, others may have promoted since: theirs counts.
    while (last := _last_finished(versions(client, name))) and last.number > number:
        number = last.number
        client.set_registered_model_alias(name, ALIAS, str(number))


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


def _withdraw(client: Any, name: str, number: int) -> None:
    try:
        client.delete_model_version(name, str(number))
    except MlflowException as error:
        if not does_not_exist(error):  # else another process withdrew it
            raise


def _last_finished(existing: list[Version]) -> Version | None:
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


def _ensure_model(client: Any, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _moved(name: str, last: Version | None, alias: int | None) -> ChampionMoved:
    state = f"points at version {alias}" if alias else "is not set"
    if last is None:
        return ChampionMoved(
            f"model {name!r}: alias {ALIAS!r} {state}, a version that precis did not promote; "
            "give the recipe another name, or remove the alias"
        )
    return ChampionMoved(
        f"model {name!r}: alias {ALIAS!r} {state}, but the last promotion is version {last.number}. "
        f"If someone moved it by hand, make that official with `precis rollback {name} --to "
        f"{alias or last.number}`; to undo it, `precis rollback {name} --to {last.number}`"
    )


def _version(entry: Any) -> Version:
    rollback_to = entry.tags.get(ROLLBACK_TO)
    return Version(
        number=int(entry.version),
        succeeds=int(entry.tags[SUCCEEDS]),
        finished=FINISHED in entry.tags,
        digest=entry.tags.get(DIGEST, ""),
        run_id=entry.tags.get(RUN_ID, ""),
        source=entry.source,
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        rollback_to=int(rollback_to) if rollback_to else None,
        description=entry.description or "",
        tokenizer=entry.tags.get(TOKENIZER, ""),
    )
