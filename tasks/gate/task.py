"""Prefect tasks: decide, on stored scores alone, and write the verdict down before acting on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.contracts import digest
from tasks.contracts.errors import EvaluationError
from tasks.contracts.formatting import headline
from tasks.contracts.recipe import Gate, Recipe
from tasks.contracts.records import Decision, Prediction, Scores, to_json
from tasks.gate.decay import Decay, decay_headline, decay_markdown, decide_decay
from tasks.gate.decide import decide
from tasks.orchestration.task_options import STEP
from tasks.processes import resource_usage, workspace
from tasks.tracking import artifacts, history, mlflow_run
from tasks.tracking.predictions_table import read_table

__all__ = ["Decay", "decay", "decay_headline", "gate", "headline"]


@task(name="gate", **STEP)
def gate(
    challenger: Scores,
    opponent: Scores,
    base: Scores,
    lead3: Scores,
    champion_version: int | None,
    rows_digest: str,
    recipe: Recipe,
) -> Decision:
    """Promote, reject or inconclusive: the challenger against the champion, or else the base."""
    run, watch = mlflow_run.current(), resource_usage.Watch()
    # The look is on record before the verdict is known: a run killed on a bad verdict has looked.
    looks = history.count_look(run, challenger.model_digest, rows_digest)
    decision = decide(
        _table(challenger),
        _table(opponent),
        recipe.gate,
        opponent_kind="champion" if champion_version else "base",
        opponent_version=champion_version,
        challenger_scores=challenger,
        opponent_scores=opponent,
        base=_table(base),
        lead3=_table(lead3),
        looks=looks,
    )
    scores = {"challenger": challenger, "opponent": opponent, "base": base, "lead3": lead3}
    _store(run, decision, recipe.gate, scores)
    primary = decision.metrics[recipe.gate.metric]
    verdict = {"precis.verdict": decision.verdict}  # to filter and sort runs by, in MLflow's UI
    run.write(
        tags=verdict | history.of_decision(run, recipe, decision),
        metrics={"gate/gain": primary.gain, "gate/low": primary.low, "gate/high": primary.high}
        | resource_usage.as_metrics("gate", watch.cost()),
    )
    for reason in decision.reasons:
        get_run_logger().info(f"{decision.verdict}: {reason}")
    return decision


@task(name="decay", **STEP)
def decay(sealed: Scores, fresh: Scores, champion_version: int, recipe: Recipe) -> Decay:
    """Whether the champion scores worse on fresh rows than on the sealed evaluation set."""
    run = mlflow_run.current()
    found = decide_decay(
        _table(sealed),
        _table(fresh),
        recipe.gate,
        recipe.evaluation.max_decay,
        champion_version=champion_version,
        sealed_scores=sealed,
        fresh_scores=fresh,
    )
    inputs = {"max_decay": recipe.evaluation.max_decay, "champion_version": champion_version}
    _keep(run, "decay", found, {"sealed": sealed, "fresh": fresh}, recipe.gate, inputs)
    means = {"decay/sealed": found.sealed.mean, "decay/fresh": found.fresh.mean}
    bounds = {"decay/drop": found.drop, "decay/low": found.low, "decay/high": found.high}
    run.write(tags={"precis.decay": found.verdict}, metrics=means | bounds)
    said = decay_headline(found, recipe.name)
    create_markdown_artifact(decay_markdown(found, recipe.name), key="decay", description=said)
    for reason in found.reasons:
        get_run_logger().info(f"{found.verdict}: {reason}")
    return found


def _table(scores: Scores) -> list[Prediction]:
    path = artifacts.fetch(scores.uri)
    if digest.of_file(path) != scores.table_digest:
        raise EvaluationError(
            f"{scores.uri} was changed after it was scored; delete that artifact's run and run again"
        )
    return read_table(path)


def _store(
    run: mlflow_run.Run, decision: Decision, settings: Gate, scores: dict[str, Scores]
) -> None:
    """Everything the decision was made from, so that anyone can recompute it (recompute.py)."""
    inputs = {
        "opponent_kind": decision.opponent,
        "opponent_version": decision.opponent_version,
        "looks": decision.looks,
    }
    _keep(run, "gate", decision, scores, settings, inputs)


def _keep(
    run: mlflow_run.Run,
    kind: str,
    decision: Decision | Decay,
    scores: dict[str, Scores],
    settings: Gate,
    inputs: dict[str, Any],
) -> None:
    """Store a decision, the tables and all else it was made from as artifact folder `kind`."""
    folder = workspace.work_folder() / kind / run.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "decision.json").write_text(to_json(decision))
    known = {who: json.loads(to_json(found)) for who, found in scores.items()}
    values = {"gate": settings.model_dump(mode="json"), **inputs, "scores": known}
    (folder / f"{kind}_inputs.json").write_text(json.dumps(values, indent=2))
    for who, found in scores.items():
        (folder / f"{who}.json").write_bytes(Path(artifacts.fetch(found.uri)).read_bytes())
    artifacts.remember(run.log_folder(folder, kind), folder)
