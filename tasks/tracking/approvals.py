"""The question whether a challenger may be promoted, as a run stores it: what was asked, and the answer.

A run that waits for people has no process, and any machine may go on with it. So what was asked is
a tag of its MLflow run, by which the run finds the decision again that the answer is about.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tasks.contracts.records import (
    AdapterRef,
    Approval,
    DatasetRef,
    ModelRef,
    ShownDecision,
    from_json,
    to_json,
)
from tasks.tracking import history

TAG = "precis.approval"


@dataclass(frozen=True)
class Candidate:
    """A challenger, with what it was made of."""

    dataset: DatasetRef
    adapter: AdapterRef
    model: ModelRef


@dataclass(frozen=True)
class Question:
    """One challenger against one opponent. `key`: of the answer, at the Prefect server."""

    key: str
    made: Candidate
    champion: str  # which succession was asked about: version, digest and run of the champion
    until: str  # UTC, ISO 8601
    pairs: int  # blind pairs that were shown
    answer: Approval | None = None
    unusable: str = ""  # why an answer that was given is none; it is asked again
    skipped: tuple[str, ...] = ()  # steps whose stored result was taken until it was asked


def question_of(run: Any) -> Question | None:
    """What this run has asked; None if it has not."""
    return read(run.client, run.id)


def read(client: Any, run_id: str) -> Question | None:
    """What a run has asked; None if it has not."""
    text = client.get_run(run_id).data.tags.get(TAG)
    return from_json(Question, text) if text else None


def refusals_of(client: Any, name: str, model_digest: str) -> tuple[str, ...]:
    """What people's refusals of this very model say to a run that asks nobody (gate.approval: none)."""
    return tuple(
        f"people refused this very model before ({one.reasons[0]}; {one.time[:10]}, run "
        f"{one.mlflow_run_id}), and nobody is asked now: gate.approval is none"
        for one in history.refused_by_people(client, name, model_digest)
    )


def answered(decision: ShownDecision, answer: Approval) -> ShownDecision:
    """A decision with its answer, which stands first among the reasons of a refusal."""
    sentence, reasons = (answer.sentence(),), decision.reasons
    told = sentence + reasons if answer.state == "refused" else reasons + sentence
    return replace(decision, approval=answer, reasons=told)


def store(run: Any, question: Question, tags: dict[str, str]) -> None:
    """Store a question, or its answer, and `tags` with it.

    An answer is stored before anything acts on it: a retry finds it, and asks nobody twice.
    """
    run.write(tags={TAG: to_json(question)} | tags)
