"""Putting an earlier champion back: a new version of the same model, claimed like a promotion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow

from tasks.contracts.errors import ChampionMoved, NoSuchChampion, Overtaken
from tasks.processes import step_process
from tasks.register import claims
from tasks.tracking import history


def choose_target(client: Any, name: str, to: int | None) -> claims.Version:
    """The version to go back to: `to`, or the champion before this one.

    Raises NoSuchChampion when there is none, naming those that exist.
    """
    champions = [v for v in claims.versions(client, name) if v.finished]
    if to is None:
        return _before_last(name, champions)
    for version in champions:
        if version.number == to:
            return version
    numbers = ", ".join(str(v.number) for v in champions) or "none"
    raise NoSuchChampion(f"model {name!r}: version {to} was never champion; those were: {numbers}")


def _before_last(name: str, champions: list[claims.Version]) -> claims.Version:
    """The champion before the last one; after a rollback, the one before what was rolled back to."""
    current = champions[-1] if champions else None
    position = (current.rollback_to or current.number) if current else claims.NOBODY
    earlier = [
        v
        for v in champions
        if current and v.number < position and v.digest != current.digest and not v.rollback_to
    ]
    if not earlier:
        raise NoSuchChampion(f"model {name!r} has no earlier champion to go back to")
    return earlier[-1]


def check_loads(target: claims.Version, folder: Path) -> None:
    """Load the version in a clean process and have it write one summary."""
    step_process.run(
        "tasks.register.reload_check:predict",
        {
            "uri": target.source,
            "tracking_uri": mlflow.get_tracking_uri(),
            "documents": ["Ann: Shall we meet at noon?\nBob: Yes, at noon."],
        },
        folder,
        fresh=True,
    )


def restore(
    client: Any,
    name: str,
    target: claims.Version,
    run_id: str,
    reason: str = "",
    expected: int | None = None,
) -> claims.Version:
    """Claim the succession for the target's model; the alias ends on the new version.

    If someone moved the alias by hand, it is first put back on the last promotion: from then on this
    rollback counts. `expected`: the champion's number when the rollback was asked for; raises Overtaken
    when it is another one by now, or when someone else succeeds meanwhile. Calling it again after a
    crash finds what this run has done.
    """
    try:
        current = claims.find_champion(client, name)
    except ChampionMoved:
        current = claims.reset_alias(client, name)
    of_this_run = [v for v in claims.versions(client, name) if v.finished and v.run_id == run_id]
    if of_this_run:  # from an earlier try, and perhaps succeeded since
        return of_this_run[0]
    if expected is not None and (current is None or current.number != expected):
        raise _overtaken(name)
    if current is not None and current.number == target.number:
        return current
    version = claims.succeed(
        client,
        name,
        current.number if current else claims.NOBODY,
        source=target.source,
        tags={
            claims.DIGEST: target.digest,
            claims.RUN_ID: run_id,
            claims.ROLLBACK_TO: str(target.number),
            **({claims.TOKENIZER: target.tokenizer} if target.tokenizer else {}),
        },
        description=f"ROLLBACK to v{target.number}{f' ({reason})' if reason else ''}: "
        f"{target.description}",
    )
    if version is None:
        raise _overtaken(name)
    return version


def _overtaken(name: str) -> Overtaken:
    return Overtaken(
        f"model {name!r} got a new champion during the rollback; see `precis history {name}`, "
        "and run it again"
    )


def history_record(
    name: str, target: claims.Version, version: claims.Version | None, run_id: str, reason: str = ""
) -> history.HistoryRecord:
    """The rollback as an entry of the history; `version` is None before it is carried out."""
    return history.HistoryRecord(
        kind="rollback",
        time=history.now(),
        name=name,
        verdict=None,
        reasons=(f"back to the model of v{target.number}", *([reason] if reason else [])),
        version=version.number if version else None,
        opponent_version=None,
        metric=None,
        gain=None,
        low=None,
        high=None,
        looks=None,
        evaluation_digest=None,
        model_digest=target.digest,
        mlflow_run_id=run_id,
    )
