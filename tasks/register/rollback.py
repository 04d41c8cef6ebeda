"""Putting an earlier champion back: a new version of the same model, claimed like a promotion.

Over 250 lines: what to go back to, and going back, are one protocol.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from tasks.contracts.errors import NoSuchChampion, Overtaken, RegistryError
from tasks.processes import step_process
from tasks.register import claims, verified, version_tags
from tasks.serving.summarizer import pyfunc
from tasks.tracking import history

PLAN = (
    "precis.rollback_plan"  # of the run: the version to put back, and the champion that it is over
)


@dataclass(frozen=True)
class Plan:
    """What a rollback does, fixed at its first step: a retry goes back to the same version.

    `expected`: the champion that it is over. `in_effect`: the version by which it has happened already.
    """

    target: claims.Version
    expected: claims.Version | None
    in_effect: claims.Version | None = None
    note: str = ""


def plan(client: Any, name: str, to: int | None, run_id: str, resumed: bool) -> Plan:
    """Decide what to go back to: `to`, or the champion before this one; writes it into the run's tags.

    What is unfinished is settled first, so a command that is repeated after a kill goes back from where
    the first one went. Without `to`, a rollback that is in effect but whose command did not end well (it
    was killed, failed, or is still running) is what was asked for: it is not followed by a second one.
    Raises NoSuchChampion when there is no such version, RegistryError when MLflow fails.
    """
    current = claims.settle(client, name)
    existing = claims.versions(client, name)
    champions = [v for v in existing if v.finished]
    if resumed and (pinned := _pinned(client, run_id)):
        target = _unchanged(name, champions, pinned)
        own = [v for v in champions if v.run_id == run_id]
        return Plan(target, _judged(existing, pinned), own[0] if own else None)
    if to is None and current and current.rollback_to and not _ended_well(client, current):
        client.set_model_version_tag(name, str(current.number), claims.COMPLETED_BY, run_id)
        return Plan(current, current, current)
    target, note = _before_last(name, champions) if to is None else (_named(name, existing, to), "")
    client.set_tag(run_id, PLAN, json.dumps(_as_json(target) | {"over": _as_json(current)}))
    return Plan(target, current, note=note)


def _as_json(version: claims.Version | None) -> dict[str, Any]:
    if version is None:
        return {}
    return {"version": version.number, "digest": version.digest, "run": version.run_id}


def _pinned(client: Any, run_id: str) -> dict[str, Any] | None:
    """What an earlier try of this run decided; None if it did not come that far."""
    text = client.get_run(run_id).data.tags.get(PLAN)
    if text is None:
        return None
    try:
        pinned: dict[str, Any] = json.loads(text)
        int(pinned["version"]), pinned["digest"], pinned["run"], pinned["over"].get("version")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise RegistryError(
            f"MLflow run {run_id}: its tag {PLAN} holds {text[:60]!r} instead of what this rollback decided; "
            "delete the tag and retry the run, or start another rollback"
        ) from None
    return pinned


def _is(version: claims.Version, pinned: dict[str, Any]) -> bool:
    return (version.number, version.digest, version.run_id) == (
        pinned.get("version"),
        pinned.get("digest"),
        pinned.get("run"),
    )


def _unchanged(
    name: str, champions: list[claims.Version], pinned: dict[str, Any]
) -> claims.Version:
    for version in champions:
        if _is(version, pinned):
            return version
    raise NoSuchChampion(
        f"model {name!r}: version {pinned['version']}, which this rollback was to put back, was deleted "
        f"since; start another one ({_listed(champions)})"
    )


def _judged(existing: list[claims.Version], pinned: dict[str, Any]) -> claims.Version | None:
    """The champion that the first try saw; one that nothing equals if it was deleted since."""
    over = pinned["over"]
    if not over:
        return None
    gone = claims.Version(
        over["version"], 0, True, over["digest"], over["run"], "", datetime.now(UTC), None, ""
    )
    return next((v for v in existing if _is(v, over)), gone)


def _ended_well(client: Any, version: claims.Version) -> bool:
    """Whether the command that made a rollback's version, or one that found it in effect, has ended well.

    Its MLflow run is FINISHED as its last act. One that is gone from MLflow is long past.
    """
    for run_id in filter(None, (version.run_id, version.completed_by)):
        try:
            if client.get_run(run_id).info.status == "FINISHED":
                return True
        except MlflowException as error:
            if not claims.does_not_exist(error):
                raise RegistryError(f"MLflow run {run_id}: {error}") from error
            if run_id == version.run_id:
                return True
    return False


def _named(name: str, existing: list[claims.Version], to: int) -> claims.Version:
    champions = [v for v in existing if v.finished]
    for version in champions:
        if version.number == to:
            return version
    if any(to in (v.succeeds, v.rollback_to) for v in existing):
        raise NoSuchChampion(
            f"model {name!r}: version {to} was champion, and was deleted from MLflow's registry: it cannot "
            f"be put back; name one that is there ({_listed(champions)})"
        )
    raise NoSuchChampion(
        f"model {name!r}: version {to} was never champion, or it was deleted; {_listed(champions)}"
    )


def _listed(champions: list[claims.Version]) -> str:
    return f"champions were: {', '.join(str(v.number) for v in champions) or 'none'}"


def _before_last(name: str, champions: list[claims.Version]) -> tuple[claims.Version, str]:
    """The champion before the last one, and what to say of it.

    After a rollback it is the one before what was rolled back to.
    """
    current = champions[-1] if champions else None
    position = (current.rollback_to or current.number) if current else claims.NOBODY
    earlier = [
        v
        for v in champions
        if current and v.number < position and v.digest != current.digest and not v.rollback_to
    ]
    if not earlier:
        raise NoSuchChampion(f"model {name!r} has no earlier champion to go back to")
    target = earlier[-1]
    there = {v.number for v in champions}
    between = {v.succeeds for v in champions if target.number < v.succeeds < position} - there
    listed = ", ".join(f"v{number}" for number in sorted(between))
    return target, f"{listed} between was deleted from the registry" if between else ""


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


def in_effect(client: Any, name: str, target: claims.Version) -> claims.Version | None:
    """The champion, if it is the target's model already and the alias names it: nothing is to be done."""
    current = claims.settle(client, name)
    if current is None or current.digest != target.digest:
        return None
    return current if claims.points_at(client, name) == current.number else None


def restore(
    client: Any,
    name: str,
    target: claims.Version,
    run_id: str,
    reason: str = "",
    *,
    expected: claims.Version | None,
    record: str = "",
) -> claims.Version:
    """Claim the succession for the target's model; the alias ends on the new version.

    If someone moved the alias by hand, it is first put back on the last promotion: from then on this
    rollback counts. `expected`: the champion when the rollback was asked for; raises Overtaken when it is
    another one by now, before anything is written, or when someone else succeeds meanwhile. Calling it
    again after a crash finds what this run has done. `record`: its history entry as JSON.
    """
    current = claims.settle(client, name)
    of_this_run = [v for v in claims.versions(client, name) if v.finished and v.run_id == run_id]
    if of_this_run:  # from an earlier try, and perhaps succeeded since
        return of_this_run[0]
    if current is None or not current.same_claim(expected):
        raise _overtaken(name, current, expected)
    if claims.points_at(client, name) != current.number:
        claims.reset_alias(client, name)
    if current.digest == target.digest:
        return current
    version = claims.succeed(
        client,
        name,
        current,
        source=target.source,
        tags={
            claims.DIGEST: target.digest,
            claims.RUN_ID: run_id,
            claims.ROLLBACK_TO: str(target.number),
            **({pyfunc.SERVED_DIGEST: target.served} if target.served else {}),
            **({version_tags.BASE: target.base} if target.base else {}),
            **({version_tags.BASE_DIGEST: target.base_digest} if target.base_digest else {}),
            **({claims.TOKENIZER: target.tokenizer} if target.tokenizer else {}),
            **({claims.RECORD: record} if record else {}),
            version_tags.VERIFIED: verified.as_tag([verified.now("rollback", 0)]),
        },
        description=f"ROLLBACK to v{target.number}{f' ({reason})' if reason else ''}: "
        f"{target.description}",
    )
    if version is None:
        raise _overtaken(name, claims.settle(client, name), expected)
    return version


def _overtaken(
    name: str, current: claims.Version | None, expected: claims.Version | None
) -> Overtaken:
    now = f"v{current.number} ({current.description})" if current else "none"
    asked = f"v{expected.number}" if expected else "none"
    return Overtaken(
        f"model {name!r} got a new champion during the rollback: {now}, and {asked} was to be replaced; "
        f"nothing was changed. See `precis history {name}`; if the new one is to be replaced too, run the "
        "rollback again, with --to VERSION"
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
        model_digest=target.digest,
        mlflow_run_id=run_id,
    )
