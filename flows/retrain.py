"""Retrain: raw data in, a registered champion out, or the numbers that tell why not.

ingest -> train -> merge -> evaluate -> gate -> register, in that order, below. `judge_and_register` holds
the last three; gate and register are done again where the champion changed meanwhile. Where the recipe
says so, people are asked between the two; the flow then starts from the top with their answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from prefect import flow
from prefect.states import Completed, Failed

from flows import approval, home_folder, run_name
from flows.announce import announce
from flows.approval_form import GivenAnswer
from flows.outcome import Outcome, promotion_stands
from flows.parameters import IfBusy, OneRecipe, ShortRecipe
from flows.run_context import is_first_try, one_retrain_at_a_time, tracked_run
from tasks.contracts import machine_faults
from tasks.contracts.errors import PrecisError, RegistryError
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import (
    AdapterParts,
    AdapterRef,
    DatasetRef,
    Scores,
    ShownDecision,
    VersionRef,
)
from tasks.evaluate.task import (
    add_model_metrics,
    evaluate,
    lead3,
    require_metric_models,
    untuned,
)
from tasks.gate.task import gate
from tasks.ingest.task import document_forms, find_base, ingest, seen_by_champion
from tasks.merge.task import dequantized_base, merge
from tasks.models.prepared_base import PreparedBase
from tasks.orchestration.concurrency import Busy
from tasks.register.task import (
    Version,
    as_model,
    current_champion,
    decided_by_earlier_try,
    promoted_by_earlier_try,
    publish_promotion,
    register,
    require_comparable,
    require_readable_rows,
    require_same_inputs,
    trained_by,
)
from tasks.report.task import report
from tasks.tracking import mlflow_run
from tasks.tracking.approvals import Candidate
from tasks.train.task import train

MOST_TRIES = 10


@flow(name="retrain", flow_run_name=run_name.typed_or_model, validate_parameters=True)
def retrain(recipe: OneRecipe, if_busy: IfBusy = "wait") -> Any:
    """Train a challenger and promote it only if it is truly better than the champion."""
    home_folder.enter()
    try:
        with machine_faults.as_errors():
            outcome = run_and_ask(recipe, if_busy)
    except Busy:
        return Completed(
            name="BUSY",
            message=f"another retrain of {recipe.name} is running; this one did nothing",
        )
    except PrecisError as error:
        return Failed(message=str(error), data=error)
    return Completed(name=outcome.decision.ending, message=outcome.headline, data=outcome)


@flow(name="retrain", flow_run_name=run_name.typed_or_model, validate_parameters=True)
def retrain_short_form(recipe: ShortRecipe, if_busy: IfBusy = "wait") -> Any:
    """Train a challenger and promote it only if it is truly better than the champion."""
    return retrain.fn(recipe, if_busy)


def run_and_ask(recipe: Recipe, if_busy: IfBusy) -> Outcome:
    """The run; where people are asked it goes on with their answer, and holds no slot until then.

    Raises Busy. In a deployed run `approval.wait` raises Prefect's Pause: a worker starts the run again
    with the answer.
    """
    answer = None
    while True:
        try:
            with one_retrain_at_a_time(recipe.name, "wait" if answer else if_busy):
                return run_retrain(recipe, answer)
        except approval.AwaitsApproval as waits:
            answer = approval.wait(waits)


def run_retrain(recipe: Recipe, answer: GivenAnswer | None = None) -> Outcome:
    """The flow's body, in the order it happens. `answer`: to what it asked, at a terminal."""
    first_try = is_first_try(again=answer is not None)
    if first_try:  # nothing is opened for what cannot be done
        require_prerequisites(recipe)
    with tracked_run(recipe, again=answer is not None) as run:
        approval.collect(recipe, answer)
        if not first_try:  # after the answer is stored: it is not lost where something is missing
            require_prerequisites(recipe)
        champion = current_champion(recipe.name)  # fails now if the registry does not answer
        require_same_inputs(champion, recipe)
        base = find_base(recipe)
        require_comparable(champion, base.path, recipe)
        dataset, adapter = approval.waiting_candidate(base) or ingest_and_train(
            champion, base, recipe
        )
        with adapter_is_kept(adapter):
            candidate = Candidate(dataset, adapter, merge(adapter, base, dataset, recipe))
            decision, version = judge_and_register(candidate, base, recipe)
        outcome = Outcome.of(run, recipe, decision, version)
        with promotion_stands(outcome):
            publish_promotion(decision, version, recipe)
            page = report(
                recipe, decision, version, outcome.headline, dataset, adapter, candidate.model
            )
            outcome = outcome.with_report(page)
            announce(outcome, dataset)
        return outcome


def require_prerequisites(recipe: Recipe) -> None:
    """Refuse a run that could not be finished here. Raises RecipeError or EvaluationError."""
    approval.require_someone(recipe)
    require_metric_models(recipe)


def ingest_and_train(
    champion: Version | None, base: PreparedBase, recipe: Recipe
) -> tuple[DatasetRef, AdapterRef]:
    """The rows, and the adapter that was trained on them."""
    dataset = ingest(recipe, base)
    require_readable_rows(champion, document_forms(dataset))
    return dataset, train(dataset, base, recipe)


@contextlib.contextmanager
def adapter_is_kept(adapter: AdapterRef) -> Iterator[None]:
    """Let the message of an error in what follows training say that training need not be done again."""
    try:
        yield
    except PrecisError as error:
        raise type(error)(
            f"{error}\nTraining is done, and its adapter is kept ({adapter.uri}): the same recipe, also "
            "with other settings of merge, evaluation or gate (--set), goes on from there"
        ) from error


def judge_and_register(
    candidate: Candidate, base: PreparedBase, recipe: Recipe
) -> tuple[ShownDecision, VersionRef | None]:
    """Judge the challenger, and register it if it wins; again if the champion changed meanwhile."""
    model, dataset = candidate.model, candidate.dataset
    challenger = evaluate(model, dataset, base, recipe, "challenger")
    challenger = add_model_metrics(challenger, recipe, "challenger")
    lead3_scores = lead3(dataset, base, recipe)
    base_scores = evaluate(untuned(base), dataset, base, recipe, "base")
    base_scores = add_model_metrics(base_scores, recipe, "base")
    refused = approval.earlier_refusals(recipe, model.digest)
    for _ in range(MOST_TRIES):
        champion = current_champion(recipe.name)
        if before := promoted_by_earlier_try(recipe.name):
            return before
        decision = decided_by_earlier_try(model.digest, champion)
        if decision is None:
            opponent = base_scores
            remarks = refused
            if champion:
                opponent, seen = judge_champion(champion, dataset, base, recipe)
                remarks = (*refused, *seen)
            version = champion.number if champion else None
            decision = gate(
                challenger, opponent, base_scores, lead3_scores, version, dataset, recipe, remarks
            )
        if decision.verdict == "PROMOTE":
            decision = approval.ask(decision, candidate, champion, recipe)
        if decision.ending != "PROMOTE":  # the verdict, or what people answered to it
            return decision, None
        parts = adapter_parts(candidate, base, recipe)
        if registered := register(model, challenger, decision, recipe, champion, parts):
            return decision, registered
        # None: the champion is another one since it was judged against.
    raise RegistryError(
        f"the champion of {recipe.name!r} changed {MOST_TRIES} times during this run; run again"
    )


def adapter_parts(candidate: Candidate, base: PreparedBase, recipe: Recipe) -> AdapterParts | None:
    """What is registered in place of the merged model that was judged; None: that is."""
    if recipe.registration.kind == "merged":
        return None
    dequantized = dequantized_base(candidate.adapter, base, recipe)
    return AdapterParts(candidate.adapter, str(dequantized))


def judge_champion(
    champion: Version, dataset: DatasetRef, base: PreparedBase, recipe: Recipe
) -> tuple[Scores, tuple[str, ...]]:
    """The champion's scores on today's rows, and what is to be known of the rows that it was trained on."""
    scores = evaluate(as_model(champion), dataset, base, recipe, "champion")
    scores = add_model_metrics(scores, recipe, "champion")
    its_run = trained_by(mlflow_run.current().client, recipe.name, champion)
    return scores, seen_by_champion(dataset, champion.number, its_run, recipe)
