"""The history of a registered model: every promotion, refusal and rollback, in order.

Each flow run writes its record as a tag of its own MLflow run, so no run ever rewrites another's;
whether a promotion took effect is read from the registry, which alone decides it.

Over 250 lines: entries are written and read in one place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from tasks.contracts.errors import RegistryError
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import MetricResult, ShownDecision, from_json
from tasks.tracking.history_record import HistoryRecord
from tasks.tracking.looks import record_look

__all__ = [
    "HistoryRecord",
    "TookEffect",
    "as_json",
    "count_look",
    "decision_tags",
    "gain_metrics",
    "now",
    "part_metrics",
    "read",
    "refused_by_people",
    "runs",
    "runs_that_looked",
    "withdraw_question",
    "write",
]

RECORD, LOOK_MODEL, LOOK_ROWS = "precis.history", "precis.look.model", "precis.look.rows"
LOOK_OPPONENT, LOOK_FROM = "precis.look.opponent", "precis.look.from"
VERDICT = "precis.verdict"  # what a run ended in, to filter and sort by in MLflow's UI


def count_look(
    run: Any,
    model_digest: str,
    metric: str,
    opponent: str,
    rows_digest: str,
    documents: Iterable[str],
    decided_from: str = "",
) -> int:
    """Record that a challenger is judged on these evaluation rows; the number judged, it included.

    `opponent`: the champion's digest, or looks.BASE: the count starts again with each champion. Counted by
    documents (looks.py), not by seal: another prompt or token limit is one more look at the same rows, and
    so is the same challenger by another metric, or `decided_from` other texts or scores (a digest). A retry
    of a run is no look. Runs of before the ledger are counted by their tags, for every opponent.
    """
    tags = {LOOK_MODEL: model_digest, LOOK_ROWS: rows_digest, LOOK_OPPONENT: opponent}
    before = run.client.get_run(run.id).data.tags
    if tags.items() <= before.items():  # counted already; by a version of before without LOOK_FROM
        decided_from = before.get(LOOK_FROM, "")
    run.write(tags=tags | ({LOOK_FROM: decided_from} if decided_from else {}))
    client, experiment = run.client, run.experiment_id
    metric = f"{metric}-{decided_from[:16]}" if decided_from else metric
    looks = record_look(client, experiment, model_digest, metric, opponent, documents)
    # A run is returned with all that it logged, so those that judged this same model are left out.
    others = f"tags.`{LOOK_ROWS}` = '{rows_digest}' and tags.`{LOOK_MODEL}` != '{model_digest}'"
    earlier = {look.data.tags[LOOK_MODEL] for look in runs(client, experiment, others)}
    return len(looks.against_opponent) + len(earlier - looks.all)


def runs_that_looked(run: Any, opponent: str, rows_digest: str) -> list[str]:
    """Ids of the runs, this one left out, that judged a challenger against this opponent on these rows."""
    query = f"tags.`{LOOK_ROWS}` = '{rows_digest}' and tags.`{LOOK_OPPONENT}` = '{opponent}'"
    found = runs(run.client, run.experiment_id, query)
    return sorted(look.info.run_id for look in found if look.info.run_id != run.id)


def refused_by_people(client: Any, name: str, model_digest: str) -> list[HistoryRecord]:
    """Entries of a model's history in which people refused this very challenger; one that cannot be read is
    passed over, as `read` names it."""
    found = (
        _parse(run.data.tags[RECORD], "", "", [])
        for run in _recorded(client, name, f" and tags.`{LOOK_MODEL}` = '{model_digest}'")
    )
    return [one for one in found if one and one.approval == "refused"]


def decision_tags(run: Any, recipe: Recipe, decision: ShownDecision) -> dict[str, str]:
    """The tag that puts a gate's decision into the history; written before anything acts on it."""
    return _as_tags(record_of(decision, recipe.name, recipe.gate.metric, run.id))


def record_of(decision: ShownDecision, name: str, metric: str, run_id: str) -> HistoryRecord:
    """A gate's decision as an entry of the history, of now, without its version."""
    primary = decision.metrics.get(metric)  # None: withheld
    approval = decision.approval
    return HistoryRecord(
        kind="promotion" if decision.ending in {"PROMOTE", "WAITS_FOR_APPROVAL"} else "refusal",
        time=now(),
        name=name,
        verdict=decision.verdict,
        reasons=decision.reasons,
        version=None,
        opponent_version=decision.opponent_version,
        metric=metric,
        gain=primary.gain if primary else None,
        low=primary.low if primary else None,
        high=primary.high if primary else None,
        looks=decision.looks,
        evaluation_digest=decision.evaluation_digest,
        model_digest=decision.challenger_digest,
        mlflow_run_id=run_id,
        approval=approval.state if approval else None,
        approved_by=approval.by or None if approval else None,
        comment=approval.comment or None if approval else None,
        approval_until=approval.until or None if approval else None,
    )


def gain_metrics(primary: MetricResult, prefix: str = "") -> dict[str, float]:
    """A gain and its bounds as metrics of a run."""
    names = ("gain", "low", "high")
    return {f"{prefix}gate/{name}": getattr(primary, name) for name in names}


def part_metrics(
    metrics: Mapping[str, MetricResult], primary: str, prefix: str = ""
) -> dict[str, float]:
    """Everyone's means on one part of the evaluation set, and the gain, as metrics of a run."""
    means = {
        f"{prefix}{who}/{name}": getattr(found, who)
        for name, found in metrics.items()
        for who in ("challenger", "champion", "base", "lead3")
    }
    known = {name: value for name, value in means.items() if value is not None}
    return known | gain_metrics(metrics[primary], prefix)


def write(run: Any, record: HistoryRecord) -> None:
    """Write a record as its run's tag."""
    run.write(tags=_as_tags(record))


def withdraw_question(client: Any, run_id: str, why: str) -> None:
    """Write that a run which waited for approval has ended without it; a run with an answer is left alone.

    Raises ValueError where the run's tag holds no entry. Of a question whose time is over the entry still
    says `waits`: `why` is then the one reason that it ended, as in all others.
    """
    text = client.get_run(run_id).data.tags.get(RECORD)
    record = from_json(HistoryRecord, text) if text else None
    if record and record.approval == "waits":
        reasons = (why, *record.reasons)
        ended = replace(record, kind="refusal", approval="expired", reasons=reasons)
        client.set_tag(run_id, VERDICT, "NOT_APPROVED")
        client.set_tag(run_id, RECORD, as_json(ended))  # last: without it this is done again


def as_json(record: HistoryRecord) -> str:
    """A record as tags hold it: MLflow cuts a tag of over 8,000 characters, and \\u4e2d is six of them."""
    return json.dumps(asdict(record), ensure_ascii=False)


def _as_tags(record: HistoryRecord) -> dict[str, str]:
    return {RECORD: as_json(record)}


@dataclass(frozen=True)
class TookEffect:
    """A promotion or rollback that the registry holds: its version, its run, and its entry as JSON.

    `fallback`: what the version itself tells, for versions of before they held their entries.
    """

    version: int
    run_id: str
    record: str
    fallback: HistoryRecord


def read(client: Any, name: str, took_effect: Sequence[TookEffect]) -> list[HistoryRecord]:
    """All records of a model, oldest first, each with the version that took effect.

    An entry whose run was deleted is read from the version. Raises RegistryError that names every tag
    which holds no record.
    """
    problems: list[str] = []
    versions = {each.run_id: each for each in took_effect}
    records = []
    for run in _recorded(client, name):
        own = versions.get(run.info.run_id)
        where = f"MLflow run {run.info.run_id} of experiment {name!r}: its tag {RECORD}"
        fix = f"mlflow.MlflowClient().delete_tag({run.info.run_id!r}, {RECORD!r}) removes it"
        if own:
            fix += f"; the entry of v{own.version} is then read from that version"
        record = _parse(run.data.tags[RECORD], where, fix, problems)
        if record:
            effect = versions.get(record.mlflow_run_id)
            version = effect.version if effect else _own_version(record)
            records.append(replace(record, version=version))
    found = {record.mlflow_run_id for record in records}
    for each in took_effect:
        if each.run_id not in found:
            where = f"model {name!r}, version {each.version}: its tag {RECORD}"
            fix = (
                f"mlflow.MlflowClient().delete_model_version_tag({name!r}, '{each.version}', {RECORD!r}) "
                "removes it; the entry is then made of the version's description"
            )
            record = _parse(each.record, where, fix, problems) if each.record else each.fallback
            if record:
                records.append(replace(record, version=each.version))
    if problems:
        raise RegistryError.of(problems)
    return sorted((record.as_of(now()) for record in records), key=lambda record: record.time)


def _recorded(client: Any, name: str, also: str = "") -> Iterator[Any]:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        yield from runs(client, experiment.experiment_id, f"tags.`{RECORD}` != ''{also}")


def _parse(text: str, where: str, fix: str, problems: list[str]) -> HistoryRecord | None:
    try:
        return from_json(HistoryRecord, text)
    except ValueError as error:  # pydantic's
        reason = next(iter(str(error).strip().splitlines()[1:]), str(error)).strip()
        problems.append(
            f"{where} holds {text[:40]!r} instead of a history entry ({reason}); restore it, or: {fix}"
        )
        return None


def _own_version(record: HistoryRecord) -> int | None:
    """A rollback that only moved the alias back made no version: its record has the target's number."""
    return record.version if record.kind == "rollback" else None


def now() -> str:
    """The time as records hold it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def runs(client: Any, experiment_id: str, query: str, page_size: int = 1000) -> Iterator[Any]:
    """MLflow runs that match a search, newest first, requested page by page as they are needed."""
    token = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=page_size, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
