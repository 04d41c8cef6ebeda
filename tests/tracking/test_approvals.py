"""What the history tells of approval: it waits, somebody answered yes or no, or nobody did in time."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from tasks.contracts.records import AdapterRef, Approval, DatasetRef, ModelRef, from_json, to_json
from tasks.tracking import approvals, history, mlflow_run
from tasks.tracking.approvals import Candidate, Question
from tasks.tracking.history_record import HistoryRecord

MADE = Candidate(
    DatasetRef("runs:/r/dataset", "d", "t", "e", 10, 5, 0),
    AdapterRef("runs:/r/adapter", "a", "b", {"loss": 0.5}),
    ModelRef("models/m", "m", "b", "a"),
)
UNTIL = "2026-12-06T00:00:00+00:00"
WAITS = HistoryRecord(
    kind="promotion",
    time="2026-11-29T00:00:00.000+00:00",
    name="demo",
    verdict="PROMOTE",
    reasons=("better on the deciding rows",),
    version=None,
    opponent_version=1,
    looks=2,
    model_digest="m",
    mlflow_run_id="r",
    approval="waits",
    approval_until=UNTIL,
)


def test_a_question_ends_by_itself() -> None:
    """Before its end it waits; from then on it is a refusal that says so, though no process wrote it."""
    before = WAITS.as_of("2026-12-05T23:59:59.000+00:00")
    assert before == WAITS
    assert f"passed the gate, waits for approval until {UNTIL}" in before.line()
    after = WAITS.as_of("2026-12-06T00:00:01.000+00:00")
    assert (after.kind, after.approval, after.version) == ("refusal", "expired", None)
    assert f"passed the gate, refused  nobody approved it until {UNTIL}" in after.line()
    assert replace(WAITS, version=2).as_of("2027").kind == "promotion"


def test_who_said_what_stands_in_the_line() -> None:
    """A promotion names who approved it; a refusal, with its numbers or sealed, who refused it and why."""
    yes = replace(WAITS, approval="approved", approved_by="Ann", version=2)
    assert "promoted v2, approved by Ann" in yes.line()
    no = ("not approved by Ann: too long", "better")
    refused = replace(WAITS, kind="refusal", approval="refused", approved_by="Ann", reasons=no)
    numbers = replace(refused, metric="rougeL", gain=0.1, low=0.0, high=0.2)
    for record in (refused, numbers):
        assert "passed the gate, refused" in record.line()
        assert "not approved by Ann: too long" in record.line()


@pytest.mark.parametrize("character", ["x", "\u4e2d", "\U0001f600"])
def test_the_longest_comment_fits_its_tag(character: str) -> None:
    """In any script: MLflow cuts a longer tag, and a history with half an entry cannot be read."""
    comment, by = character * 500, character * 100
    refused = Approval("refused", UNTIL, by, comment, "of 20 blind pairs ...")
    record = replace(
        WAITS,
        kind="refusal",
        approval="refused",
        approved_by=by,
        comment=comment,
        reasons=(refused.sentence(), *WAITS.reasons),
    )
    text = history.as_json(record)
    assert len(text) < MAX_TAG_VAL_LENGTH
    assert from_json(HistoryRecord, text) == record
    assert len(to_json(Question("key", MADE, "v1 m r", UNTIL, 20, refused))) < MAX_TAG_VAL_LENGTH


def test_a_question_and_its_answer_are_found_again(home_with_store: Path) -> None:
    """By another process of the same flow run; a run that goes on later is SCHEDULED meanwhile."""
    question = Question("key", MADE, "none", UNTIL, 20)
    with (
        contextlib.suppress(mlflow_run.GoesOnLater),
        mlflow_run.run_for("m", "flow-run", {}) as run,
    ):
        assert approvals.question_of(run) is None
        approvals.store(run, question, {history.RECORD: history.as_json(WAITS)})
        raise mlflow_run.GoesOnLater
    info = run.client.get_run(run.id).info
    assert (info.status, info.end_time) == ("SCHEDULED", None)
    with mlflow_run.run_for("m", "flow-run", {}) as again:
        assert (again.id, again.resumed) == (run.id, True)
        assert approvals.question_of(again) == question
        answered = replace(question, answer=Approval("approved", UNTIL, "Ann"))
        approvals.store(again, answered, {})
    assert approvals.question_of(again) == answered
    assert again.client.get_run(run.id).info.status == "FINISHED"


def test_a_question_whose_run_has_ended_is_withdrawn(home_with_store: Path) -> None:
    """Cancelled while it waited: a refusal that says why. A run that has its answer is left alone."""
    with mlflow_run.run_for("m", "flow-run", {}) as run:
        run.write(tags={history.RECORD: history.as_json(WAITS)})
        history.withdraw_question(run.client, run.id, "it was cancelled")
        withdrawn = run.client.get_run(run.id).data.tags[history.RECORD]
        assert '"kind": "refusal"' in withdrawn
        assert "it was cancelled" in withdrawn
        answered = history.as_json(replace(WAITS, approval="approved", approved_by="Ann"))
        run.write(tags={history.RECORD: answered})
        history.withdraw_question(run.client, run.id, "it was cancelled")
        assert run.client.get_run(run.id).data.tags[history.RECORD] == answered
