"""Verify a registered model against what was judged: files, decision, history, alias and summaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from flows import verified_note
from tasks.contracts.errors import PrecisError
from tasks.contracts.findings import Findings
from tasks.gate.task import check_stored, read_shown
from tasks.processes import workspace
from tasks.register.task import (
    Version,
    check_files,
    check_history,
    check_promotion,
    check_refusal,
    check_rollback,
    check_succession,
    check_summaries,
    judged_as,
    name_in,
    readable_versions,
    require_model,
    verified_now,
    version_of,
)
from tasks.tracking import connection

T = TypeVar("T")


@dataclass(frozen=True)
class Verified:
    """What was found of a model as a whole, and of each version that was looked at."""

    name: str
    model: Findings
    versions: dict[int, Findings] = field(default_factory=dict)
    written: dict[Version, int] = field(default_factory=dict)  # how many texts, if all were equal

    @property
    def as_judged(self) -> bool:
        """Whether nothing differs."""
        return not any(found.differences for found in (self.model, *self.versions.values()))

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        versions = {str(number): asdict(found) for number, found in self.versions.items()}
        return {
            "name": self.name,
            "as_judged": self.as_judged,
            "model": asdict(self.model),
            "versions": versions,
        }

    def as_text(self) -> str:
        """All of it, for a terminal."""
        parts = [(self.name, self.model)]
        parts += [(f"{self.name} v{number}", found) for number, found in self.versions.items()]
        lines = []
        for title, found in parts:
            count = len(found.differences)
            state = f"{count} difference{'s' if count > 1 else ''}" if count else "as judged"
            lines.append(f"{title}: {state}")
            lines += [f"  differs: {text}" for text in found.differences]
            lines += [f"  remark: {text}" for text in found.remarks]
            lines += [f"  checked: {text}" for text in found.checked]
        return "\n".join(lines)


def verify_model(reference: str, rows: int, every: bool) -> Verified:
    """Check the version that `reference` names (NAME: its champion), or every version.

    `rows`: how many stored summaries are written again, of each version. Raises RegistryError when there
    is no such model or version, or when MLflow does not answer.
    """
    name = name_in(reference)
    if connection.nothing_yet():
        require_model(name)
    client = connection.connect()
    found = Verified(name, Findings())
    versions = readable_versions(client, name, found.model)
    if not versions and not found.model.differences:
        require_model(name)
    named = None if every else version_of(client, reference, versions, found.model)
    guarded = _Guarded(found.model)
    guarded(check_succession, client, name, versions, found.model)
    records = guarded(check_history, client, name, found.model) or []
    wanted = versions if every else [named] if named else []
    for version in wanted:
        of_version = found.versions[version.number] = Findings()
        with workspace.temporary_folder(workspace.VERIFY) as scratch:
            texts = _check_version(client, name, version, versions, rows, scratch, of_version)
        if texts and not of_version.differences:
            found.written[version] = texts
    if every:
        with workspace.temporary_folder(workspace.VERIFY) as scratch:
            _check_refusals(client, records, scratch, found.model)
    return found


class _Guarded:
    """Calls a check; what it cannot read is a difference, and the other checks go on."""

    def __init__(self, found: Findings) -> None:
        self.found = found

    def __call__(self, check: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return check(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever the store holds, no traceback
            what = check.__name__.removeprefix("_").replace("_", " ")
            reason = str(error).strip() or type(error).__name__
            if not isinstance(error, PrecisError):
                reason = f"{type(error).__name__}: {reason}"
            self.found.differences.append(f"could not {what}: {reason}")
            return None


def _check_version(
    client: Any,
    name: str,
    version: Version,
    versions: Sequence[Version],
    rows: int,
    scratch: Path,
    found: Findings,
) -> int:
    """How many summaries were written again, if all were equal."""
    guarded = _Guarded(found)
    folder = guarded(check_files, client, name, version, scratch, found)
    judged = judged_as(version, versions)
    decision = guarded(check_stored, client, judged.run_id, scratch, found)
    if version.rollback_to:
        guarded(check_rollback, client, name, version, found)
    elif decision:
        guarded(
            check_promotion,
            client,
            name,
            version,
            decision.told,
            decision.metric,
            found,
        )
    if rows and folder and decision:  # nothing is run that is not as registered
        texts = guarded(
            check_summaries,
            version,
            decision.challenger,
            decision.device,
            rows,
            scratch,
            found,
        )
        return texts or 0
    if rows:
        found.remarks.append(
            "no summary was written again: files or decision are not as registered"
        )
    return 0


def note(found: Verified, log: Callable[[str], None]) -> None:
    """Note on each version where it was verified, if all is as judged; a failure is logged."""
    for version, texts in found.written.items() if found.as_judged else ():
        noted = verified_now("precis verify", texts)
        verified_note.add(found.name, version.number, version.digest, noted, log)


def _check_refusals(client: Any, records: Sequence[Any], scratch: Path, found: Findings) -> None:
    """Entries of what was never registered, each against its run's decision."""
    guarded, count = _Guarded(found), 0
    for record in records:
        if record.version is not None or record.kind == "rollback":
            continue
        decision = guarded(read_shown, record.mlflow_run_id, scratch)
        if decision is None:
            found.remarks.append(
                f"MLflow run {record.mlflow_run_id}: its entry in the history has no decision beside it"
            )
            continue
        guarded(check_refusal, client, record, decision, record.metric, found)
        count += 1
    if count:
        found.checked.append(f"{count} entries without a version in the history")
