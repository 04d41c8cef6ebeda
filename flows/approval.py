"""Ask people before a challenger that passed the gate is registered (gate.approval: required).

A deployed run is suspended: its process ends, and with it the worker's place and the model's slot, until
someone answers the form in Prefect. It is then started again; its challenger is taken from MLflow, and so
is the decision that was asked about. A run that no deployment started asks at the terminal; its slot is
free meanwhile too.

Prefect's suspend_flow_run alone would ask again after a crash, and has no place for what was asked.

Over 250 lines: a question, its answer and what became of it are one story.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from mlflow.exceptions import MlflowException
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.flow_runs import suspend_flow_run
from prefect.input.actions import read_flow_run_input
from prefect.input.run_input import keyset_from_base_key
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings

from flows import notify, stale_runs, terminal_question
from flows.approval_form import (
    BY_PAIRS,
    Answer,
    GivenAnswer,
    form_for,
    marks_of,
    one_line,
    problem_of,
    why_again,
)
from tasks.contracts.errors import PrecisError, RecipeError
from tasks.contracts.formatting import about_feedback, headline
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import AdapterRef, Approval, DatasetRef, ShownDecision
from tasks.ingest.task import rows_are_stored
from tasks.models.prepared_base import PreparedBase
from tasks.register.task import Version, public_decision, succession
from tasks.report.task import blind_pairs, name_blind_pairs, preferred_in_pairs, report
from tasks.tracking import approvals, artifacts, connection, history, mlflow_run
from tasks.tracking.approvals import Candidate, Question
from tasks.train.task import adapter_is_stored

ASKED = "precis.approval.asked"
NOBODY = (
    "gate.approval is required, and nobody can be asked here: {why}. Start the run from a deployment, which "
    "waits in Prefect for an answer (precis up, then prefect deployment run retrain/NAME), or run it at a "
    "terminal, or set gate.approval: none"
)


class AwaitsApproval(mlflow_run.GoesOnLater):
    """The run has asked, and goes on when it is answered."""

    def __init__(self, question: Question, text: str, run_id: str) -> None:
        super().__init__(question.key)
        self.question, self.text, self.run_id = question, text, run_id


def problems(recipe: Recipe) -> list[str]:
    """Why nobody could be asked, as far as it is known before a run."""
    if recipe.gate.approval == "none" or terminal_question.is_possible():
        return []
    if get_current_settings().api.url:
        return []  # a deployed run waits there
    return [NOBODY.format(why="no Prefect server is configured, and this is no terminal")]


def require_someone(recipe: Recipe) -> None:
    """Refuse a run that could ask nobody, before it spends anything. Raises RecipeError."""
    if recipe.gate.approval == "none" or _is_deployed() or terminal_question.is_possible():
        return
    raise RecipeError(NOBODY.format(why="no deployment started this run, and this is no terminal"))


def collect(recipe: Recipe, given: GivenAnswer | None) -> None:
    """Store what people have answered since this run asked. `given`: at the terminal."""
    run = mlflow_run.current()
    if recipe.gate.approval == "none" or not run.resumed:
        return
    question = approvals.question_of(run)
    if question is None or question.answer is not None:
        return
    # Prefect takes no answer after its end, so one that is found there came in time.
    if found := given or _answer_to(question):
        _store(run, recipe, question, found)


def waiting_candidate(base: PreparedBase) -> tuple[DatasetRef, AdapterRef] | None:
    """Rows and adapter of the challenger that this run has asked about; None where it asked nothing.

    Newer data or code change nothing of it: people have answered about this challenger, and about no other.
    """
    run = mlflow_run.current()
    question = approvals.question_of(run) if run.resumed else None
    if question is None:
        return None
    dataset, adapter = question.made.dataset, question.made.adapter
    if adapter.base_digest != base.digest:
        problem = "the base model has changed since"
    elif not rows_are_stored(dataset) or not adapter_is_stored(adapter):
        problem = "its rows or its adapter are gone from MLflow"
    else:
        run.skipped += ["ingest", "train"]
        return dataset, adapter
    get_run_logger().warning(
        f"the challenger that was asked about cannot be had ({problem}): another is made, and asked about"
    )
    return None


def earlier_refusals(recipe: Recipe, model_digest: str) -> tuple[str, ...]:
    """Remarks on a challenger that people have refused, where nobody is asked now; logged too."""
    if recipe.gate.approval == "required":
        return ()
    remarks = approvals.refusals_of(mlflow_run.current().client, recipe.name, model_digest)
    for remark in remarks:
        get_run_logger().warning(remark)
    return remarks


def ask(
    decision: ShownDecision, made: Candidate, champion: Version | None, recipe: Recipe
) -> ShownDecision:
    """The decision with people's answer. `decision`: the gate's, a PROMOTE.

    Raises AwaitsApproval where there is no answer yet, with report and blind pairs stored.
    """
    if recipe.gate.approval == "none":
        return decision
    run = mlflow_run.current()
    before = approvals.question_of(run) if run.resumed else None
    if before and before.answer and stands(before, made, champion):
        run.skipped[:] = before.skipped  # the rest was done before it asked
        return _answered(decision, before.answer)
    text, question = _put(run, recipe, made, champion, before)
    raise AwaitsApproval(question, text, run.id)


def wait(waits: AwaitsApproval) -> GivenAnswer:
    """The answer from the terminal; of a deployed run suspends the flow run, and raises Prefect's Pause.

    That is the last that its process does: a heartbeat after it would have the run taken for a dead one.
    """
    question = waits.question
    if not _is_deployed():
        with _withdrawn_if_it_ends(waits.run_id):
            answer = Answer(**terminal_question.ask(waits.text, question.pairs))
        return GivenAnswer(answer, datetime.now(UTC))
    seconds = (datetime.fromisoformat(question.until) - datetime.now(UTC)).total_seconds()
    suspend_flow_run(
        wait_for_input=form_for(question.pairs).with_initial_data(description=waits.text),
        timeout=max(1, round(seconds)),
        key=question.key,
    )
    raise AssertionError("a key is used once")


@contextlib.contextmanager
def _withdrawn_if_it_ends(run_id: str) -> Iterator[None]:
    """Close the run where the person ends it instead of answering: Ctrl-C, a closed terminal, kill."""
    try:
        yield
    except BaseException as ended:
        why = f"the run was ended while it asked for approval ({type(ended).__name__})"
        try:
            stale_runs.end_waiting(connection.connect(), run_id, why)
        except (MlflowException, PrecisError) as error:
            get_run_logger().warning(f"the model's next run closes this one: {error}")
        raise


def _put(
    run: mlflow_run.Run,
    recipe: Recipe,
    made: Candidate,
    champion: Version | None,
    before: Question | None,
) -> tuple[str, Question]:
    """Store the question with its report and pairs, and announce it; its text, and the question."""
    until = datetime.now(UTC) + timedelta(days=recipe.gate.approval_timeout_days)
    ends = until.isoformat(timespec="seconds")
    told = replace(public_decision(), approval=Approval("waits", ends))
    title = headline(told, recipe.name, None, recipe.gate.metric)
    page = report(recipe, told, None, title, made.dataset, made.adapter, made.model).uri
    count, pairs = blind_pairs(recipe.name, told)
    question = Question(
        str(uuid4()), made, succession(champion), ends, count, skipped=tuple(run.skipped)
    )
    approvals.store(run, question, _tags(run, recipe, told))
    get_run_logger().info(title)
    emit_event(
        ASKED,
        resource=notify.resource(recipe.name),
        payload={"headline": title, "reasons": list(told.reasons), "until": ends, "report": page},
    )
    replaced = "Nothing would be replaced: it would be the first champion."
    if champion:
        replaced = f"It would replace v{champion.number}: {champion.description}"
    where = (
        "Read first: `report` and `blind-pairs`, artifacts of this run, and in MLflow "
        f"{_shown_uri(page)} and {_shown_uri(pairs)}"
    )
    parts = [title, why_again(question, before), replaced, about_feedback(told), where]
    return "\n\n".join(filter(None, parts)), question


def _shown_uri(uri: str) -> str:
    """For a terminal a file, since there the pages have no server that shows them."""
    return uri if _is_deployed() else str(artifacts.fetch(uri))


def _answer_to(question: Question) -> GivenAnswer | None:
    """What was answered in Prefect; None if nothing was."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    key = keyset_from_base_key(f"suspended-{question.key}")["response"]
    value: Any = read_flow_run_input(key, flow_run_id=context.flow_run.id)
    return GivenAnswer(Answer(**value), datetime.fromisoformat(question.until)) if value else None


def _store(run: mlflow_run.Run, recipe: Recipe, question: Question, given: GivenAnswer) -> None:
    """Store an answer; or why it is none."""
    answer = given.answer
    problem = problem_of(answer.decision, answer.approved_by, answer.preferred, question.pairs)
    if given.time > datetime.fromisoformat(question.until):
        problem = f"the answer came after {question.until}, when the question had ended"
    if problem:
        get_run_logger().warning(f"the answer cannot be used: {problem}")
        approvals.store(run, replace(question, unusable=problem), {})
        return
    marks = marks_of(answer.preferred)
    ours, theirs, neither = preferred_in_pairs(marks) if marks else (0, 0, 0)
    is_approved = answer.decision == "approve" or (answer.decision == BY_PAIRS and ours > theirs)
    pairs = (
        f"of {len(marks)} blind pairs the challenger was preferred in {ours}, the other model in {theirs}, "
        f"neither in {neither}"
    )
    approval = Approval(
        "approved" if is_approved else "refused",
        question.until,
        one_line(answer.approved_by),
        one_line(answer.comment),
        pairs if marks else "",
    )
    told = _answered(public_decision(), approval)
    approvals.store(run, replace(question, answer=approval, unusable=""), _tags(run, recipe, told))
    name_blind_pairs(recipe.name, told)
    get_run_logger().info(approval.sentence())


def _answered(decision: ShownDecision, answer: Approval) -> ShownDecision:
    """A decision with its answer; of one that was refused, what may be told without a promotion."""
    if answer.state == "refused":
        decision = public_decision()
    return approvals.answered(decision, answer)


def _tags(run: mlflow_run.Run, recipe: Recipe, told: ShownDecision) -> dict[str, str]:
    return {"precis.verdict": told.ending} | history.decision_tags(run, recipe, told)


def stands(question: Question, made: Candidate, champion: Version | None) -> bool:
    """Whether an answer is about this challenger and champion; a refusal is about any champion."""
    if question.made.model.digest != made.model.digest or question.answer is None:
        return False
    return question.answer.state == "refused" or question.champion == succession(champion)


def _is_deployed() -> bool:
    """Whether somebody would start this run again: only then can it be suspended."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)
