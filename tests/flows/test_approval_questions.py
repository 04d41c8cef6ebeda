"""Asking for approval where no server keeps the question: at a terminal, or not at all.

Over 250 lines: the question, its answers and its end are tried with the same made-up run.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import tiny
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.logging import disable_run_logger
from pydantic import ValidationError

from flows import approval, terminal_question
from flows.approval_form import Answer, GivenAnswer, form_for, one_line, problem_of, why_again
from flows.cli.entry import main
from flows.retrain import retrain, run_retrain
from tasks.contracts.errors import EvaluationError, RecipeError
from tasks.contracts.recipe import Gate, Recipe
from tasks.contracts.records import AdapterRef, Approval, DatasetRef, ModelRef
from tasks.register.task import Version, succession
from tasks.tracking import approvals, connection, history, mlflow_run
from tasks.tracking.approvals import Candidate, Question
from tasks.tracking.history_record import HistoryRecord

FLOW_RUN = "00000000-0000-4000-8000-000000000001"
UNTIL = "2999-01-01T00:00:00+00:00"


def recipe(**gate: object) -> Recipe:
    return tiny.make_recipe(Path("unused"), gate=gate)


def test_a_run_that_can_ask_nobody_is_refused_at_the_start(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `check` and by the run, with what to do; who asks nobody is not stopped."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    (problem,) = approval.problems(recipe(approval="required"))
    assert "gate.approval is required, and nobody can be asked here" in problem
    assert "precis up" in problem
    with pytest.raises(RecipeError, match="no deployment started this run"):
        approval.require_someone(recipe(approval="required"))
    assert approval.problems(recipe()) == []
    approval.require_someone(recipe())


def test_the_terminal_asks_until_it_has_an_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard error alone; what is no decision is asked again, an empty name is the user's."""
    monkeypatch.setenv("LOGNAME", "ann")
    answers = io.StringIO("AB=\nwhat\n\nr\n\ntoo long\n")
    given = terminal_question.ask("WAITS FOR APPROVAL demo", 3, answers)
    assert given == {
        "decision": "refuse", "approved_by": "ann", "comment": "too long", "preferred": "AB=",
    }  # fmt: skip
    assert Answer(**given).decision == "refuse"
    out, err = capsys.readouterr()
    assert out == ""
    assert "WAITS FOR APPROVAL demo" in err
    assert err.count("[a]pprove") == 3


def test_the_terminal_asks_again_for_what_cannot_be_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Too few letters, or a name of nothing: with the reason, and from the start."""
    answers = io.StringIO("AB\na\nAnn\n" "\np\nAnn\n" "AB=\np\n--\n" "AB=\np\nAnn\nfine\n")  # fmt: skip
    given = terminal_question.ask("demo", 3, answers)
    assert given == {
        "decision": "as the pairs say", "approved_by": "Ann", "comment": "fine", "preferred": "AB=",
    }  # fmt: skip
    _, err = capsys.readouterr()
    for problem in ("there are 3 pairs", "no pair had a letter", "who answers?"):
        assert problem in err


@pytest.mark.parametrize("user", ["ann", "--", "\u200b"])
def test_the_end_of_the_input_approves_nothing(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-D at any question, whatever the user is called: it is an answer, so nobody is asked for ever."""
    monkeypatch.setenv("LOGNAME", user)
    for text in ("", "A\n", "A\na\n", "A\na\nAnn\n"):
        given = terminal_question.ask("demo", 1, io.StringIO(text))
        assert (given["decision"], given["comment"]) == (
            "refuse",
            "the input ended without an answer",
        )
        assert not problem_of(given["decision"], given["approved_by"], given["preferred"], 1)


@pytest.mark.parametrize(
    ("preferred", "fits"),
    [("", True), ("AB=", True), ("a b,=", True), ("AB", False), ("ABBA", False), ("ABC", False)],
)
def test_the_form_takes_a_letter_a_pair(preferred: str, fits: bool) -> None:
    """As many as there are pairs, or none; the server refuses what the form does not allow."""
    form = form_for(3)
    values = {"decision": "approve", "approved_by": "Ann", "preferred": preferred}
    if fits:
        assert form(**values).approved_by == "Ann"
    else:
        with pytest.raises(ValidationError):
            form(**values)


@pytest.mark.parametrize("values", [{"decision": "approve"}, {"decision": "yes", "approved_by": "A"},
                                    {"decision": "approve", "approved_by": "  "}])  # fmt: skip
def test_the_form_wants_a_decision_and_a_name(values: dict[str, str]) -> None:
    """Neither has a default: nothing is approved by a click."""
    with pytest.raises(ValidationError):
        form_for(0)(**values)


@pytest.mark.parametrize(
    ("typed", "stands"),
    [
        ("  Ann\t Lee\n", "Ann Lee"),
        ("Ann\x1b[31m\x07", "Ann[31m"),
        ("\u202eeeL nnA", "eeL nnA"),
        ("Ann\u200bLee\ud800", "AnnLee"),
        (
            "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627",
            "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627",
        ),
        ("e\u0301", "\u00e9"),
        ("\u674e", "\u674e"),
    ],
)
def test_what_a_person_typed_is_one_harmless_line(typed: str, stands: str) -> None:
    """No escape for a terminal, no turned reading, no half of a character; names of all scripts stay."""
    assert one_line(typed) == stands
    assert not problem_of("approve", typed, "", 0)


@pytest.mark.parametrize("name", ["", "  ", "\u200b", "\u200c", "\u3164", "--", "\x1b", "\u2800"])
def test_a_name_that_nobody_can_read_is_no_name(name: str) -> None:
    """The form's pattern lets invisible characters pass; the run then asks again, and says why."""
    assert "who answers?" in problem_of("approve", name, "", 0)


def asked(digest: str = "m", champion: str = "none", answer: Approval | None = None) -> Question:
    made = Candidate(
        DatasetRef("d", "d", "t", "e", 1, 1, 0),
        AdapterRef("a", "a", "b"),
        ModelRef("p", digest, "b"),
    )
    return Question("key", made, champion, "2026", 20, answer)


def test_an_approval_is_of_one_challenger_against_one_champion() -> None:
    """A refusal is of the challenger, with any champion; neither is of another challenger."""
    v1 = Version(1, 0, True, "c", "run", "", datetime.now(UTC), None, "v1")
    yes, no = Approval("approved", "2026", "Ann"), Approval("refused", "2026", "Ann")
    approved, refused = asked(answer=yes), asked(answer=no)
    assert approval.stands(approved, approved.made, None)
    assert not approval.stands(approved, approved.made, v1)
    assert not approval.stands(asked(champion=succession(v1), answer=yes), approved.made, None)
    assert approval.stands(asked(champion=succession(v1), answer=yes), approved.made, v1)
    again = replace(v1, number=2)  # by a rollback
    assert not approval.stands(asked(champion=succession(v1), answer=yes), approved.made, again)
    assert approval.stands(refused, refused.made, v1)
    assert not approval.stands(refused, asked("other").made, None)
    assert not approval.stands(asked(), asked().made, None)


def test_who_is_asked_again_hears_why() -> None:
    """The champion changed, the challenger is another, or the answer could not be used."""
    yes = asked(answer=Approval("approved", "2026", "Ann"))
    assert why_again(asked(), None) == why_again(asked(), asked()) == ""
    assert "approved by Ann, but meanwhile the champion changed" in why_again(asked(), yes)
    assert "that challenger cannot be had any more" in why_again(asked("other"), yes)
    assert "no letter" in why_again(asked(), replace(asked(), unusable="no letter"))


PASSED = HistoryRecord(
    kind="promotion", time="2026-11-29T00:00:00.000+00:00", name="tiny", verdict="PROMOTE",
    reasons=("better",), version=None, model_digest="m", mlflow_run_id="r", approval="waits",
    approval_until=UNTIL,
)  # fmt: skip


def asks(record: str = history.as_json(PASSED), until: str = UNTIL) -> approval.AwaitsApproval:
    """A run that has asked, and is SCHEDULED."""
    question = replace(asked(), until=until, pairs=0)
    try:
        with mlflow_run.run_for("tiny", FLOW_RUN, {}) as run:
            approvals.store(run, question, {history.RECORD: record})
            raise approval.AwaitsApproval(question, "WAITS FOR APPROVAL tiny", run.id)
    except approval.AwaitsApproval as waits:
        return waits


class Ends(io.StringIO):
    """A terminal at which the run is ended."""

    def __init__(self, how: BaseException) -> None:
        super().__init__()
        self.how = how

    def readline(self, *_: object) -> str:
        raise self.how


@pytest.mark.parametrize(
    ("how", "record"),
    [(KeyboardInterrupt(), history.as_json(PASSED)), (SystemExit(128 + signal.SIGHUP), "edited")],
)
def test_who_ends_the_run_at_its_question_withdraws_it(
    home_with_store: Path, monkeypatch: pytest.MonkeyPatch, how: BaseException, record: str
) -> None:
    """Ctrl-C, a closed terminal, kill: closed at once, in the history too; an edited entry stays as it is."""
    waits = asks(record)
    monkeypatch.setattr("sys.stdin", Ends(how))
    with pytest.raises(type(how)):
        approval.wait(waits)
    run = connection.connect().get_run(waits.run_id)
    assert run.info.status == "KILLED"
    assert type(how).__name__ in run.data.tags[mlflow_run.ERROR]
    if record == "edited":
        assert run.data.tags[history.RECORD] == "edited"
    else:
        (entry,) = history.read(connection.connect(), "tiny", [])
        assert (entry.kind, entry.approval) == ("refusal", "expired")
        assert run.data.tags[history.VERDICT] == "NOT_APPROVED"


def test_a_closed_terminal_ends_the_command_as_term_does() -> None:
    """It raises, so that what it began is closed; under nohup it goes on."""
    numbers = (signal.SIGHUP, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        for given, ends in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
            signal.signal(signal.SIGHUP, given)
            main(["version"])
            with pytest.raises(SystemExit) if ends else contextlib.nullcontext():
                os.kill(os.getpid(), signal.SIGHUP)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_an_answer_after_its_time_approves_nothing(home_with_store: Path) -> None:
    """People are asked again, and hear why."""
    asks(until="2026-01-01T00:00:00+00:00")
    given = GivenAnswer(Answer(decision="approve", approved_by="Ann"), datetime.now(UTC))
    with disable_run_logger(), mlflow_run.run_for("tiny", FLOW_RUN, {}) as run:
        approval.collect(recipe(approval="required"), given)
        question = approvals.question_of(run)
    assert question
    assert question.answer is None
    assert "the answer came after 2026-01-01" in why_again(asked(), question)


def test_an_answer_is_stored_before_the_machine_is_judged(home_with_store: Path) -> None:
    """On a machine without a metric's model; a first try there opens no run at all."""
    wants = recipe(approval="required", nli_model="nowhere/nli")
    flow_run = FlowRun(
        id=UUID(FLOW_RUN), flow_id=uuid4(), name="n", run_count=1, deployment_id=uuid4()
    )
    context = FlowRunContext.model_construct(flow=retrain, flow_run=flow_run)
    given = GivenAnswer(Answer(decision="approve", approved_by="--"), datetime.now(UTC))
    with context, disable_run_logger():
        with pytest.raises(EvaluationError, match="nowhere/nli"):
            run_retrain(wants)
        assert connection.connect().get_experiment_by_name("tiny") is None
        run_id = asks().run_id
        with pytest.raises(EvaluationError, match="nowhere/nli"):
            run_retrain(wants, given)
    question = approvals.read(connection.connect(), run_id)
    assert question
    assert "who answers?" in question.unusable


@pytest.mark.parametrize("days", [0, -1, 366])
def test_the_time_for_an_answer_has_bounds(days: float) -> None:
    """More than nothing, at most a year."""
    with pytest.raises(ValidationError):
        Gate(approval_timeout_days=days)


def test_what_people_refused_is_known_to_a_run_that_asks_nobody(home_with_store: Path) -> None:
    """By the model's digest; no answer in time, or a yes, is no refusal, and who asks is told nothing."""
    free, entry = recipe(), {"time": "2026-11-29T00", "version": None, "verdict": "PROMOTE"}
    for digest in ("refused", "expired", "approved"):
        with mlflow_run.run_for(free.name, f"of {digest}", {}) as run, disable_run_logger():
            assert approval.earlier_refusals(free, digest) == ()
            record = HistoryRecord(kind="refusal", name=free.name, reasons=("not approved by Ann",),
                                   model_digest=digest, mlflow_run_id=run.id, approval=digest, **entry)  # type: ignore[arg-type]  # fmt: skip
            run.write(tags={history.RECORD: history.as_json(record), history.LOOK_MODEL: digest})
            told = approval.earlier_refusals(free, digest)
            assert len(told) == (digest == "refused")
            assert all(
                "refused this very model before (not approved by Ann; 2026-11-29" in t for t in told
            )
            assert approval.earlier_refusals(recipe(approval="required"), digest) == ()
