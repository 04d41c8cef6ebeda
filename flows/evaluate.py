"""Evaluate the champion on fresh data: does it still do what it did when it was promoted?

The sealed evaluation set tells how good the champion was; labelled rows that came later tell how good
it is now. Nothing is registered, and nothing is added to the history. The verdict is the flow's state; for
DECAYED an event is sent (`precis.champion.decayed`), on which an automation can start a retrain.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from prefect import flow
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed

from flows import home_folder, notify, run_name
from flows.parameters import OneRecipe
from flows.run_context import tracked_run
from tasks.contracts import machine_faults
from tasks.contracts.errors import NoSuchChampion, PrecisError
from tasks.contracts.recipe import Recipe
from tasks.evaluate.task import evaluate
from tasks.gate.task import Decay, decay, decay_headline
from tasks.ingest.task import dataset_of, find_base, ingest, ingest_fresh, require_fresh
from tasks.register.task import as_model, current_champion, trained_by
from tasks.tracking import mlflow_run


@dataclass(frozen=True)
class Evaluated:
    """The result of evaluating the champion."""

    name: str
    decay: Decay
    headline: str
    skipped: tuple[str, ...]
    mlflow_run_id: str
    prefect_flow_run_id: str

    def as_text(self) -> str:
        """Headline, reasons and skipped steps, for a terminal."""
        skipped = [f"unchanged, not done again: {', '.join(self.skipped)}"] if self.skipped else []
        return "\n".join([self.headline, *(f"- {why}" for why in self.decay.reasons), *skipped])

    def as_json(self) -> str:
        """The `--json` object: the decision's fields, and those of this record."""
        values = asdict(self)
        return json.dumps(values.pop("decay") | values, indent=2)


@flow(name="evaluate-champion", flow_run_name=run_name.typed_or_model, validate_parameters=True)
def evaluate_champion(recipe: OneRecipe) -> Any:
    """Score the champion on evaluation.fresh, and tell whether it has decayed."""
    home_folder.enter()
    try:
        with machine_faults.as_errors():
            evaluation = run_evaluation(recipe)
    except PrecisError as error:
        return Failed(message=str(error), data=error)
    return Completed(name=evaluation.decay.verdict, message=evaluation.headline, data=evaluation)


def run_evaluation(recipe: Recipe) -> Evaluated:
    """The flow's body, in the order it happens."""
    require_fresh(recipe)
    with tracked_run(recipe) as run:
        champion = current_champion(recipe.name)
        if champion is None:
            raise NoSuchChampion(
                f"model {recipe.name!r} has no champion to evaluate; promote one first, with the "
                "retrain flow (precis run RECIPE)"
            )
        base = find_base(recipe)
        dataset = ingest(recipe, base)
        training_data = dataset_of(run.client, trained_by(run.client, recipe.name, champion))
        fresh = ingest_fresh(recipe, base, (dataset, training_data))
        model = as_model(champion)
        sealed_scores = evaluate(model, dataset, base, recipe, "champion")
        fresh_scores = evaluate(model, fresh, base, recipe, "fresh")
        decision = decay(sealed_scores, fresh_scores, champion.number, recipe)
        evaluation = _evaluated(run, recipe, decision)
        if decision.verdict == "DECAYED":
            payload = _payload(evaluation)
            notify.send(notify.DECAYED, recipe.name, payload, evaluation.prefect_flow_run_id)
        return evaluation


def _evaluated(run: mlflow_run.Run, recipe: Recipe, decision: Decay) -> Evaluated:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return Evaluated(
        name=recipe.name,
        decay=decision,
        headline=decay_headline(decision, recipe.name),
        skipped=tuple(run.skipped),
        mlflow_run_id=run.id,
        prefect_flow_run_id=str(context.flow_run.id),
    )


def _payload(evaluation: Evaluated) -> dict[str, Any]:
    """What the event says."""
    decision = evaluation.decay
    return {
        "name": evaluation.name,
        "champion_version": decision.champion_version,
        "metric": decision.metric,
        "sealed": decision.sealed.mean,
        "fresh": decision.fresh.mean,
        "fresh_rows": decision.fresh.rows,
        "drop": decision.drop,
        "low": decision.low,
        "high": decision.high,
        "max_decay": decision.max_decay,
        "mlflow_run_id": evaluation.mlflow_run_id,
        "headline": evaluation.headline,
    }
