"""What `precis verify` compares where people were asked: each entry against the answer that its run holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gate.gate_tables import in_the_open, judged, two_models

from tasks.contracts.findings import Findings
from tasks.contracts.records import AdapterRef, Approval, DatasetRef, ModelRef, ShownDecision
from tasks.register.verify_records import check_refusal
from tasks.tracking import approvals, history, mlflow_run
from tasks.tracking.approvals import Made, Question

UNTIL = "2026-12-06T00:00:00+00:00"
MADE = Made(
    DatasetRef("d", "d", "t", "e", 1, 1, 0), AdapterRef("a", "a", "b"), ModelRef("p", "m", "b")
)
NO = Approval("refused", UNTIL, "Ann Lee", "too terse")


@pytest.fixture
def run(home_with_store: Path) -> Iterator[mlflow_run.Run]:
    with mlflow_run.run_for("demo", "flow-run", {}) as run:
        yield run


@pytest.fixture(scope="module")
def passed() -> ShownDecision:
    decision = in_the_open(judged(*two_models(1, rows=60, gain=0.2)))
    assert decision.verdict == "PROMOTE"
    return decision


def differences(run: Any, record: history.HistoryRecord, decision: ShownDecision) -> list[str]:
    found = Findings()
    check_refusal(run.client, record, decision, "rougeL", found)
    return found.differences


def entry(run: Any, decision: ShownDecision) -> history.HistoryRecord:
    return history.record_of(decision, "demo", "rougeL", run.id)


def test_entries_of_what_people_were_asked_are_as_written(
    run: mlflow_run.Run, passed: ShownDecision
) -> None:
    """Waiting, ended by itself, withdrawn, refused; and an edited name or answer is a difference."""
    question = Question("key", MADE, "none", UNTIL, 20)
    approvals.store(run, question, {})
    waits = entry(run, replace(passed, approval=Approval("waits", UNTIL)))
    assert differences(run, waits, passed) == []
    assert differences(run, waits.as_of("2027"), passed) == []
    run.write(tags={history.RECORD: history.as_json(waits)})
    history.withdraw_question(run.client, run.id, "it was cancelled")
    (withdrawn,) = history.read(run.client, "demo", [])
    assert withdrawn.reasons[0] == "it was cancelled"
    assert differences(run, withdrawn, passed) == []
    approvals.store(run, replace(question, answer=NO), {})
    refused = entry(run, approvals.answered(passed, NO))
    assert differences(run, refused, passed) == []
    assert "approved_by" in differences(run, replace(refused, approved_by="Bob"), passed)[0]
    assert "approval" in differences(run, replace(refused, approval="approved"), passed)[0]
