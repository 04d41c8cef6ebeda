"""Putting an earlier champion back: a new version of the same model, claimed like a promotion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.contracts.errors import ChampionMoved, NoSuchChampion, Overtaken
from tasks.processes import step_process
from tasks.register import claims
from tasks.tracking import history


def choose(client: Any, name: str, to: int | None) -> claims.Version:
    """The version to go back to. Raises RegistryError when there is none, naming those there are."""
    known = [v for v in claims.versions(client, name) if v.finished]
    if to is None:
        return _before_last(name, known)
    for version in known:
        if version.number == to:
            return version
    numbers = ", ".join(str(v.number) for v in known) or "none"
    raise NoSuchChampion(f"model {name!r}: version {to} was never champion; those were: {numbers}")


def _before_last(name: str, known: list[claims.Version]) -> claims.Version:
    """The champion before the last one; after a rollback, the one before what was rolled back to."""
    current = known[-1] if known else None
    place = (current.rollback_to or current.number) if current else claims.NOBODY
    before = [
        v
        for v in known
        if current and v.number < place and v.digest != current.digest and not v.rollback_to
    ]
    if not before:
        raise NoSuchChampion(f"model {name!r} has no earlier champion to go back to")
    return before[-1]


def check(target: claims.Version, folder: Path) -> None:
    """Load the version in a clean process and have it write one summary."""
    step_process.run(
        "tasks.register.reload_check:predict",
        {"uri": target.source, "documents": ["Ann: Shall we meet at noon?\nBob: Yes, at noon."]},
        folder,
    )


def put_back(
    client: Any,
    name: str,
    target: claims.Version,
    run_id: str,
    reason: str = "",
    over: int | None = None,
) -> claims.Version:
    """Claim the succession for the target's model; the alias ends on the new version.

    If other hands moved the alias, it is first put back where the history left it: this rollback is
    the official word. `over`: the champion's number when it was asked for; raises Overtaken when it is
    another by now, or when someone else succeeds meanwhile. Calling it again after a crash finds what
    this run has done.
    """
    try:
        current = claims.champion(client, name)
    except ChampionMoved:
        current = claims.realign(client, name)
    done = [v for v in claims.versions(client, name) if v.finished and v.run_id == run_id]
    if done:  # by an earlier try, and perhaps succeeded since
        return done[0]
    if over is not None and (current is None or current.number != over):
        raise _overtaken(name)
    if current is not None and current.number == target.number:
        return current
    won = claims.succeed(
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
    if won is None:
        raise _overtaken(name)
    return won


def _overtaken(name: str) -> Overtaken:
    return Overtaken(f"model {name!r} got a new champion during the rollback; look, and run again")


def record(
    name: str, target: claims.Version, won: claims.Version | None, run_id: str, reason: str = ""
) -> history.HistoryRecord:
    """The rollback as an entry of the history; `won` is None before it is carried out."""
    return history.HistoryRecord(
        kind="rollback",
        time=history.now(),
        name=name,
        verdict=None,
        reasons=(f"back to the model of v{target.number}", *([reason] if reason else [])),
        version=won.number if won else None,
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
