"""A version of a registered model as precis' tags describe it, read strictly.

Tags can be edited by anyone, in MLflow's UI. What the succession is decided by is never guessed from a
tag that does not hold what precis writes: the error names each such tag, its version, and the fix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tasks.contracts.errors import RegistryError
from tasks.serving.summarizer import pyfunc

SUCCEEDS, FINISHED = "precis.succeeds", "precis.finished"
# Version numbers begin again when a registered model is deleted and made again: digest and run do not.
SUCCEEDS_DIGEST, SUCCEEDS_RUN = "precis.succeeds_digest", "precis.succeeds_run"
DIGEST, RUN_ID = "precis.model_digest", "precis.run_id"
ROLLBACK_TO, COMPLETED_BY = "precis.rollback_to", "precis.completed_by"
TOKENIZER = "precis.tokenizer_digest"
RECORD = "precis.history"  # of a version: its entry, which outlives its run
APPROVED_BY, APPROVAL_COMMENT = "precis.approved_by", "precis.approval_comment"
# Whether its promotion or rollback was told (moves.py); versions of before have no such tag.
TOLD, UNTOLD = "precis.told", "no"
VERIFIED = "precis.verified"
# Of a version that holds an adapter: the registered model of its base, and that base's digest.
BASE, BASE_DIGEST = "precis.base", "precis.base_digest"
NOBODY = 0  # what the first champion succeeds


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
    # Of the champion it was judged against; versions of before have its number alone.
    succeeds_digest: str = ""
    succeeds_run: str = ""
    record: str = ""  # its history entry as JSON, without the version's number
    served: str = ""  # digest of the logged model's manifest; versions of before have none
    completed_by: str = (
        ""  # the run that found a rollback in effect whose own run had not ended well
    )
    verified: str = ""  # where it was seen to write what it was judged by (verified.py)
    base: str = ""  # of an adapter: the registered model that holds its base, by name
    base_digest: str = ""
    told: str = ""  # UNTOLD, or when its promotion or rollback was told

    def follows(self, champion: Version | None) -> bool:
        """Whether it was claimed as the successor of this very model, not of one that had its number."""
        if champion is None:
            return self.succeeds == NOBODY
        return (
            self.succeeds == champion.number
            and self.succeeds_digest in ("", champion.digest)
            and self.succeeds_run in ("", champion.run_id)
        )

    def same_claim(self, other: Version | None) -> bool:
        """Whether the other is this version still: number, model and run."""
        return other is not None and (self.number, self.digest, self.run_id) == (
            other.number,
            other.digest,
            other.run_id,
        )


def claim_tags(champion: Version | None) -> dict[str, str]:
    """The tags by which a new version claims the succession of this champion (None: there is none)."""
    if champion is None:
        return {SUCCEEDS: str(NOBODY), TOLD: UNTOLD}
    return {
        TOLD: UNTOLD,
        SUCCEEDS: str(champion.number),
        SUCCEEDS_DIGEST: champion.digest,
        SUCCEEDS_RUN: champion.run_id,
    }


def read(name: str, entries: list[Any]) -> list[Version]:
    """The versions that precis made among MLflow's, in number order.

    Raises RegistryError that names every tag which does not hold what precis writes.
    """
    ours = [entry for entry in entries if SUCCEEDS in entry.tags or FINISHED in entry.tags]
    if found := [problem for entry in ours for problem in _problems(name, entry)]:
        raise RegistryError.of(found)
    return sorted((_version(entry) for entry in ours), key=lambda version: version.number)


def judged_as(version: Version, versions: Sequence[Version]) -> Version:
    """The version whose run judged this one's model.

    A promotion is judged by its own run, also where the same model was promoted before and then rolled back.
    A rollback's version has the decision of the latest promotion of its model.
    """
    if not version.rollback_to:
        return version
    earlier = [v for v in versions if v.digest == version.digest and not v.rollback_to]
    return max(
        (v for v in earlier if v.number < version.number), key=lambda v: v.number, default=version
    )


def _problems(name: str, entry: Any) -> list[str]:
    """What is wrong with a version's tags, each with the fix."""
    number, problems = int(entry.version), []
    where = f"model {name!r}, version {number}: its tag"
    if not _is_number(entry.tags.get(SUCCEEDS), NOBODY, number - 1):
        command = _command(name, number, SUCCEEDS, "NUMBER")
        problems.append(
            f"{where} {SUCCEEDS} {_holds(entry.tags.get(SUCCEEDS))} instead of the number of the version "
            f"that it succeeded (0: it was the first champion). Set it: {command} (or in "
            f"MLflow's UI); if precis did not make this version, delete the tags {SUCCEEDS} and "
            f"{FINISHED} there: precis then leaves it alone"
        )
    rollback_to = entry.tags.get(ROLLBACK_TO)
    if rollback_to is not None and not _is_number(rollback_to, 1, number - 1):
        problems.append(
            f"{where} {ROLLBACK_TO} {_holds(rollback_to)} instead of the number of the version that was put "
            f"back; its description says which. Set it: {_command(name, number, ROLLBACK_TO, 'NUMBER')}"
        )
    for tag, what in (
        (DIGEST, "the digest of its package"),
        (RUN_ID, "the MLflow run that made it"),
    ):
        if not entry.tags.get(tag):
            problems.append(
                f"{where} {tag} {_holds(entry.tags.get(tag))} instead of {what}. Set it: "
                f"{_command(name, number, tag, 'VALUE')}; the logged model {entry.source} has "
                f"{'the same tag' if tag == DIGEST else 'it as its source run'}"
            )
    return problems


def _holds(value: str | None) -> str:
    return "is missing" if value is None else f"holds {value[:40]!r}"


def _command(name: str, number: int, tag: str, value: str) -> str:
    return f"mlflow.MlflowClient().set_model_version_tag({name!r}, '{number}', {tag!r}, '{value}')"


def _is_number(text: str | None, least: int, most: int) -> bool:
    return text is not None and text.isascii() and text.isdecimal() and least <= int(text) <= most


def _version(entry: Any) -> Version:
    rollback_to = entry.tags.get(ROLLBACK_TO)
    return Version(
        number=int(entry.version),
        succeeds=int(entry.tags[SUCCEEDS]),
        finished=FINISHED in entry.tags,
        digest=entry.tags[DIGEST],
        run_id=entry.tags[RUN_ID],
        source=entry.source,
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        rollback_to=int(rollback_to) if rollback_to else None,
        description=entry.description or "",
        tokenizer=entry.tags.get(TOKENIZER, ""),
        succeeds_digest=entry.tags.get(SUCCEEDS_DIGEST, ""),
        succeeds_run=entry.tags.get(SUCCEEDS_RUN, ""),
        record=entry.tags.get(RECORD, ""),
        served=entry.tags.get(pyfunc.SERVED_DIGEST, ""),
        completed_by=entry.tags.get(COMPLETED_BY, ""),
        verified=entry.tags.get(VERIFIED, ""),
        base=entry.tags.get(BASE, ""),
        base_digest=entry.tags.get(BASE_DIGEST, ""),
        told=entry.tags.get(TOLD, ""),
    )
