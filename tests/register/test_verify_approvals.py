"""What `precis verify` compares where people were asked: each entry against the answer that its run holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from gate.gate_tables import in_the_open, judged, two_models

from tasks.contracts.findings import Findings
from tasks.contracts.records import (
    AdapterRef,
    Approval,
    DatasetRef,
    ModelRef,
    ShownDecision,
    to_json,
)
from tasks.register import claims, version_tags
from tasks.register.own_promotion import promoted_by_earlier_try, publish_promotion
from tasks.register.verify_records import EVALUATION_DIGEST, check_promotion, check_refusal
from tasks.tracking import approvals, history, mlflow_run
from tasks.tracking.approvals import Candidate, Question

UNTIL, LATER = "2026-12-06T00:00:00+00:00", "2027"
MADE = Candidate(
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
    assert differences(run, waits.as_of(LATER), passed) == []
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


@pytest.mark.parametrize("until", ["2026-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"])
def test_a_question_that_is_withdrawn_has_one_reason(
    run: mlflow_run.Run, passed: ShownDecision, until: str
) -> None:
    """Timed out or not, and withdrawn twice: verify finds the entry as written, and the verdict ends."""
    approvals.store(run, Question("key", MADE, "none", until, 20), {})
    waits = entry(run, replace(passed, approval=Approval("waits", until)))
    run.write(tags={history.RECORD: history.as_json(waits), history.VERDICT: "WAITS_FOR_APPROVAL"})
    for _ in range(2):
        history.withdraw_question(run.client, run.id, "it ended as Failed")
    (withdrawn,) = history.read(run.client, "demo", [])
    assert withdrawn.reasons == ("it ended as Failed", *waits.reasons)
    assert differences(run, withdrawn, passed) == []
    assert run.client.get_run(run.id).data.tags[history.VERDICT] == "NOT_APPROVED"


def test_a_promotion_after_a_crash_is_told_as_people_approved_it(
    home_with_store: Path, passed: ShownDecision
) -> None:
    """The retry finds its own promotion, and writes the entry that verify expects: with who approved it."""
    yes = Approval("approved", UNTIL, "Ann Lee", "clear", "of 20 blind pairs ...")
    told = replace(passed, feedback="sealed", opponent_version=None, opponent="base")
    with mlflow_run.run_for("demo", "flow-run", {}) as run:
        approvals.store(run, Question("key", MADE, "none", UNTIL, 20, yes), {})
        file = home_with_store / "shown.json"
        file.write_text(to_json(told))
        run.log_file(file, f"{mlflow_run.SEALED}/gate")
        approved = approvals.answered(told, yes)
        record = history.as_json(entry(run, approved))
        tags = {
            version_tags.DIGEST: told.challenger_digest,
            version_tags.RUN_ID: run.id,
            version_tags.RECORD: record,
            version_tags.APPROVED_BY: yes.by,
            version_tags.APPROVAL_COMMENT: yes.comment,
            EVALUATION_DIGEST: told.evaluation_digest,
            "precis.rougeL": f"{told.metrics['rougeL'].challenger:.4f}",
        }
        source = f"models:/{run.client.create_logged_model(run.experiment_id, source_run_id=run.id).model_id}"
        assert claims.succeed(run.client, "demo", None, source=source, tags=tags, description="d")
    with mlflow_run.run_for("demo", "flow-run", {}) as again:
        found = promoted_by_earlier_try("demo")
        assert found
        publish_promotion(*found, tiny.make_recipe(Path("unused"), name="demo"))
    (version,) = claims.versions(again.client, "demo")
    findings = Findings()
    check_promotion(again.client, "demo", version, told, "rougeL", findings)
    assert findings.differences == []
    again.client.set_model_version_tag("demo", "1", version_tags.APPROVAL_COMMENT, "unclear")
    check_promotion(again.client, "demo", version, told, "rougeL", findings)
    assert [version_tags.APPROVAL_COMMENT in text for text in findings.differences] == [True]
