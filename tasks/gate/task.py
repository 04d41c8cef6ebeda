"""Prefect task: decide, on stored scores alone, and write the verdict down before acting on it."""

from __future__ import annotations

import json
from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from tasks import artifacts, digest, history, tracking
from tasks.errors import EvaluationError
from tasks.gate.decide import decide
from tasks.gate.words import headline
from tasks.policy import STEP
from tasks.recipe import Gate, Recipe
from tasks.records import Decision, Prediction, Scores, to_json
from tasks.table import read_table

__all__ = ["gate", "headline"]


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
    run = tracking.current()
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
    history.write_decision(run, recipe, decision)
    primary = decision.metrics[recipe.gate.metric]
    run.tag("precis.verdict", decision.verdict)  # to filter and sort runs by, in MLflow's UI
    run.log_metrics({"gate/gain": primary.gain, "gate/low": primary.low, "gate/high": primary.high})
    for reason in decision.reasons:
        get_run_logger().info(f"{decision.verdict}: {reason}")
    return decision


def _table(scores: Scores) -> list[Prediction]:
    path = artifacts.fetch(scores.uri)
    if digest.of_file(path) != scores.table_digest:
        raise EvaluationError(
            f"{scores.uri} was changed after it was scored; delete that artifact's run and run again"
        )
    return read_table(path)


def _store(
    run: tracking.Run, decision: Decision, settings: Gate, scores: dict[str, Scores]
) -> None:
    """Everything the decision was made from, so that anyone can recompute it (recompute.py)."""
    folder = artifacts.work_folder() / "gate" / run.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "decision.json").write_text(to_json(decision))
    inputs = {
        "gate": settings.model_dump(mode="json"),
        "opponent_kind": decision.opponent,
        "opponent_version": decision.opponent_version,
        "looks": decision.looks,
        "scores": {who: json.loads(to_json(found)) for who, found in scores.items()},
    }
    (folder / "gate_inputs.json").write_text(json.dumps(inputs, indent=2))
    for who, found in scores.items():
        (folder / f"{who}.json").write_bytes(Path(artifacts.fetch(found.uri)).read_bytes())
    run.log_folder(folder, "gate")
