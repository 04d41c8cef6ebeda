"""Prefect tasks: decide from stored scores alone, and store the verdict before anything acts on it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from pydantic import TypeAdapter

from tasks.contracts import digest
from tasks.contracts.documents import plain_text
from tasks.contracts.errors import EvaluationError, RegistryError
from tasks.contracts.recipe import Gate, Recipe
from tasks.contracts.records import Decision, Prediction, Scores, from_json, to_json
from tasks.gate.decay import Decay, decay_headline, decay_markdown, decide_decay
from tasks.gate.decide import decide
from tasks.gate.earlier_looks import EarlierLook, look_of
from tasks.gate.power import advice
from tasks.gate.recompute import EARLIER
from tasks.orchestration.task_options import STEP
from tasks.processes import resource_usage, workspace
from tasks.tracking import artifacts, history, mlflow_run
from tasks.tracking.looks import BASE
from tasks.tracking.predictions_table import read_table

OWN = "look.json"  # what a later look needs of this one

__all__ = ["Decay", "advice", "decay", "decay_headline", "gate"]


@task(name="gate", **STEP)
def gate(
    challenger: Scores,
    opponent: Scores,
    base: Scores,
    lead3: Scores,
    champion_version: int | None,
    rows_digest: str,
    recipe: Recipe,
    remarks: tuple[str, ...] = (),
) -> Decision:
    """Promote, reject or inconclusive: the challenger against the champion, or else the base.

    `remarks`: on the evaluation rows; they stand in the decision's notes.
    """
    run, watch = mlflow_run.current(), resource_usage.Watch()
    # Counted before the verdict is known: a run that is killed on a bad verdict has looked too.
    rows, metric = _table(challenger), recipe.gate.metric
    documents = [plain_text(row.document) for row in rows]
    against = opponent.model_digest if champion_version else BASE
    looks = history.count_look(
        run, challenger.model_digest, metric, against, rows_digest, documents
    )
    opponent_rows, earlier = _table(opponent), _earlier(run, against, rows_digest)
    decision = decide(
        rows,
        opponent_rows,
        recipe.gate,
        opponent_kind="champion" if champion_version else "base",
        opponent_version=champion_version,
        challenger_scores=challenger,
        opponent_scores=opponent,
        base=_table(base),
        lead3=_table(lead3),
        looks=looks,
        earlier=earlier,
    )
    decision = replace(decision, notes=(*decision.notes, *remarks))
    scores = {"challenger": challenger, "opponent": opponent, "base": base, "lead3": lead3}
    own = look_of(decision, metric, rows, opponent_rows)
    _store(run, decision, recipe.gate, scores, earlier, own)
    primary = decision.metrics[metric]
    verdict = {"precis.verdict": decision.verdict}  # to filter and sort runs by, in MLflow's UI
    run.write(
        tags=verdict | history.decision_tags(run, recipe, decision),
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
    decision = decide_decay(
        _table(sealed),
        _table(fresh),
        recipe.gate,
        recipe.evaluation.max_decay,
        champion_version=champion_version,
        sealed_scores=sealed,
        fresh_scores=fresh,
    )
    inputs = {"max_decay": recipe.evaluation.max_decay, "champion_version": champion_version}
    _store_folder(run, "decay", decision, {"sealed": sealed, "fresh": fresh}, recipe.gate, inputs)
    means = {"decay/sealed": decision.sealed.mean, "decay/fresh": decision.fresh.mean}
    bounds = {"decay/drop": decision.drop, "decay/low": decision.low, "decay/high": decision.high}
    run.write(tags={"precis.decay": decision.verdict}, metrics=means | bounds)
    headline = decay_headline(decision, recipe.name)
    create_markdown_artifact(
        decay_markdown(decision, recipe.name), key="decay", description=headline
    )
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


def _earlier(run: mlflow_run.Run, opponent: str, rows_digest: str) -> list[EarlierLook]:
    """The looks of earlier runs that are at hand: a run that was killed, deleted or pruned has none."""
    looks = []
    for run_id in history.runs_that_looked(run, opponent, rows_digest):
        with contextlib.suppress(RegistryError):
            stored = artifacts.fetch(f"runs:/{run_id}/gate/{OWN}")
            looks.append(from_json(EarlierLook, stored.read_bytes()))
    return looks


def _store(
    run: mlflow_run.Run,
    decision: Decision,
    settings: Gate,
    scores: dict[str, Scores],
    earlier: list[EarlierLook],
    own: EarlierLook,
) -> None:
    """Store all that the decision was made from, so that anyone can recompute it (recompute.py)."""
    folder = workspace.work_folder() / "gate" / run.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OWN).write_text(to_json(own))
    (folder / EARLIER).write_bytes(TypeAdapter(list[EarlierLook]).dump_json(earlier))
    inputs = {
        "opponent_kind": decision.opponent,
        "opponent_version": decision.opponent_version,
        "looks": decision.looks,
        "earlier_digest": digest.of_file(folder / EARLIER) if earlier else "",
    }
    _store_folder(run, "gate", decision, scores, settings, inputs)


def _store_folder(
    run: mlflow_run.Run,
    kind: str,
    decision: Decision | Decay,
    scores: dict[str, Scores],
    settings: Gate,
    inputs: dict[str, Any],
) -> None:
    """Store a decision, its tables and its settings as artifact folder `kind`."""
    folder = workspace.work_folder() / kind / run.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "decision.json").write_text(to_json(decision))
    records = {who: json.loads(to_json(record)) for who, record in scores.items()}
    values = {"gate": settings.model_dump(mode="json"), **inputs, "scores": records}
    (folder / f"{kind}_inputs.json").write_text(json.dumps(values, indent=2))
    for who, record in scores.items():
        (folder / f"{who}.json").write_bytes(Path(artifacts.fetch(record.uri)).read_bytes())
    artifacts.remember(run.log_folder(folder, kind), folder)
