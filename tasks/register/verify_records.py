"""Whether a version's tags and its entries in the history tell what was decided. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from mlflow.exceptions import MlflowException

from tasks.contracts.errors import RegistryError
from tasks.contracts.findings import Findings
from tasks.contracts.formatting import headline
from tasks.contracts.records import Approval, ShownDecision, from_json
from tasks.register import claims, version_tags
from tasks.register.history_entries import history_of
from tasks.tracking import approvals, history

EVALUATION_DIGEST = "precis.evaluation_digest"
CLOCKS = timedelta(minutes=10)  # by which the clocks of two machines may differ
# Of an entry: the version is read from the registry.
NOT_COMPARED = ("time", "version", "schema_version")
NUMBERS = ("gain", "low", "high", "reasons")  # which a run's own tag has not, if it ended too early


def check_history(client: Any, name: str, found: Findings) -> list[history.HistoryRecord]:
    """All entries of a model; each tag that holds none is a difference."""
    try:
        records = history_of(client, name)
    except RegistryError as error:
        found.differences += str(error).splitlines()
        return []
    found.checked.append(f"history of {len(records)} entries")
    return records


def check_promotion(
    client: Any,
    name: str,
    version: claims.Version,
    decision: ShownDecision,
    metric: str,
    found: Findings,
) -> None:
    """A promoted version's tags and entries against the decision, which was computed again."""
    where, differences = f"model {name!r}, version {version.number}", found.differences
    if decision.verdict != "PROMOTE":
        differences.append(f"{where} was registered, and the verdict on it was {decision.verdict}")
    opponent = decision.opponent_version if decision.opponent == "champion" else claims.NOBODY
    if opponent != version.succeeds:
        differences.append(
            f"{where}: its tag {claims.SUCCEEDS} holds {version.succeeds}, and it was judged against "
            f"{f'version {opponent}' if opponent else 'the untuned base'}; set the tag again"
        )
    if decision.challenger_digest != version.digest:
        differences.append(
            f"{where}: run {version.run_id} judged another model than this one's files"
        )
    tags = client.get_model_version(name, str(version.number)).tags
    expected = {EVALUATION_DIGEST: decision.evaluation_digest}
    question = approvals.read(client, version.run_id)
    if question and question.answer:
        decision = approvals.answered(decision, question.answer)
        expected[version_tags.APPROVED_BY] = question.answer.by
        expected[version_tags.APPROVAL_COMMENT] = question.answer.comment
    if metric in decision.metrics:
        expected[f"precis.{metric}"] = f"{decision.metrics[metric].challenger:.4f}"
    for tag, value in expected.items():
        if tags.get(tag) != value:
            differences.append(
                f"{where}: its tag {tag} holds {str(tags.get(tag))[:40]!r}, and the decision says {value!r}; "
                "set the tag again"
            )
    # Earlier versions of precis worded it otherwise.
    if version.served and version.description != headline(decision, name, None, metric):
        differences.append(
            f"{where}: its description is not the decision's: {headline(decision, name, None, metric)!r}; "
            "set it again"
        )
    record = history.record_of(decision, name, metric, version.run_id)
    for place, text in _entries(client, name, version):
        by_run = not place.startswith("model")
        _compare(place, text, record, version.created, NUMBERS if by_run else (), found)


def check_rollback(client: Any, name: str, version: claims.Version, found: Findings) -> None:
    """A rollback's entries against its version."""
    for place, text in _entries(client, name, version):
        record = _read(place, text, found)
        if record is None:
            continue
        expected = ("rollback", name, version.digest, version.run_id)
        if (record.kind, record.name, record.model_digest, record.mlflow_run_id) != expected:
            found.differences.append(
                f"{place}: the entry does not tell of this rollback (kind, name, model or run differ); "
                "restore it from a backup"
            )
        _check_time(place, record, version.created, found)


def check_refusal(
    client: Any,
    record: history.HistoryRecord,
    decision: ShownDecision,
    metric: str,
    found: Findings,
) -> None:
    """A refusal's entry, or that of a promotion which never took place, against what was decided."""
    place = f"MLflow run {record.mlflow_run_id}: its tag {history.RECORD}"
    asked = _as_asked(client, record, decision)
    expected = history.record_of(asked, record.name, metric, record.mlflow_run_id)
    if record.approval == "expired":  # why it ended stands first
        reasons = (*record.reasons[:1], *expected.reasons)
        expected = replace(expected, kind="refusal", approval="expired", reasons=reasons)
    if different := _different(record, expected, NUMBERS if decision.verdict == "PROMOTE" else ()):
        found.differences.append(
            f"{place}: {', '.join(different)} differ from the decision; restore it from a backup"
        )


def _as_asked(client: Any, record: history.HistoryRecord, decision: ShownDecision) -> ShownDecision:
    """The decision with what people were asked and answered, as their run holds it."""
    question = approvals.read(client, record.mlflow_run_id) if record.approval else None
    if question is None:
        return decision
    if question.answer:
        return approvals.answered(decision, question.answer)
    return replace(decision, approval=Approval("waits", question.until))


def _entries(client: Any, name: str, version: claims.Version) -> Iterator[tuple[str, str]]:
    """Where a version's entry stands, and its text: at the version, and at its run."""
    if version.record:
        yield f"model {name!r}, version {version.number}: its tag {claims.RECORD}", version.record
    try:
        text = client.get_run(version.run_id).data.tags.get(history.RECORD)
    except MlflowException:  # it is gone, which the check of its decision tells
        return
    if text:
        yield f"MLflow run {version.run_id}: its tag {history.RECORD}", text


def _read(place: str, text: str, found: Findings) -> history.HistoryRecord | None:
    try:
        return from_json(history.HistoryRecord, text)
    except ValueError:
        found.differences.append(f"{place} holds no history entry; restore it from a backup")
        return None


def _compare(
    place: str,
    text: str,
    expected: history.HistoryRecord,
    created: datetime,
    may_be_withheld: tuple[str, ...],
    found: Findings,
) -> None:
    record = _read(place, text, found)
    if record is None:
        return
    if different := _different(record, expected, may_be_withheld):
        changes = (f"{n}: {getattr(record, n)!r}, was {getattr(expected, n)!r}" for n in different)
        found.differences.append(
            f"{place} does not tell what was decided ({'; '.join(changes)}); restore it from a backup"
        )
    _check_time(place, record, created, found)


def _different(
    record: history.HistoryRecord, expected: history.HistoryRecord, may_be_withheld: tuple[str, ...]
) -> list[str]:
    withheld = record.gain is None
    return [
        field.name
        for field in fields(record)
        if field.name not in NOT_COMPARED
        and not (withheld and field.name in may_be_withheld)
        and getattr(record, field.name) != getattr(expected, field.name)
    ]


def _check_time(
    place: str, record: history.HistoryRecord, created: datetime, found: Findings
) -> None:
    """It was written in the run that made the version: within a day before, not after."""
    try:
        time = datetime.fromisoformat(record.time)
    except ValueError:
        time = datetime.min.replace(tzinfo=UTC)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    if not created - timedelta(days=1) <= time <= created + CLOCKS:
        found.differences.append(
            f"{place}: its time is {record.time!r}, and version was made at "
            f"{created.isoformat(timespec='seconds')}; restore it from a backup"
        )
