"""What this very run decided and did before: found again by a retry, or after people have answered."""

from __future__ import annotations

import contextlib
from dataclasses import fields

from tasks.contracts.errors import RegistryError
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import Decision, ShownDecision, VersionRef, from_json
from tasks.register import claims
from tasks.tracking import approvals, artifacts, history, mlflow_run


def publish_promotion(decision: ShownDecision, version: VersionRef | None, recipe: Recipe) -> None:
    """Under sealed feedback, tell the numbers of a promotion that took place; again is harmless."""
    if version is None or decision.feedback == "open":
        return
    run = mlflow_run.current()
    run.write(
        tags=history.decision_tags(run, recipe, decision),
        metrics=history.part_metrics(decision.metrics, recipe.gate.metric),
    )
    run.log_file(artifacts.fetch(f"runs:/{run.id}/{mlflow_run.SEALED}/gate/shown.json"), "gate")


def promoted_by_earlier_try(name: str) -> tuple[ShownDecision, VersionRef] | None:
    """This run's own promotion, when it crashed after it and is now retried; None otherwise.

    It is not judged again: the champion may be another one by now.
    """
    run = mlflow_run.current()
    if not run.resumed:
        return None
    promoted = [v for v in claims.versions(run.client, name) if v.finished and v.run_id == run.id]
    if not promoted:
        return None
    decision, question = _decided(run), approvals.question_of(run)
    if question and question.answer:
        decision = approvals.answered(decision, question.answer)
    return decision, VersionRef(name, promoted[0].number, promoted[0].digest)


def succession(champion: claims.Version | None) -> str:
    """Which champion a challenger is to succeed, in one word: another with its number differs."""
    return f"v{champion.number} {champion.digest} {champion.run_id}" if champion else "none"


def decided_by_earlier_try(
    model_digest: str, champion: claims.Version | None
) -> ShownDecision | None:
    """The decision on which this run asked people, where it still stands: same challenger, same champion.

    A refusal of the challenger stands against any champion. The decision is not made again: challengers that
    were judged meanwhile would count as looks, though this one was judged before them.
    """
    run = mlflow_run.current()
    if not run.resumed:
        return None
    question = approvals.question_of(run)
    if question is None or question.made.model.digest != model_digest:
        return None
    is_refused = question.answer is not None and question.answer.state == "refused"
    return _decided(run) if is_refused or question.champion == succession(champion) else None


def public_decision() -> ShownDecision:
    """This run's decision as it may be told before a promotion took place."""
    run = mlflow_run.current()
    return from_json(ShownDecision, artifacts.fetch(f"runs:/{run.id}/gate/shown.json").read_bytes())


def _decided(run: mlflow_run.Run) -> ShownDecision:
    """What this run's gate decided, with numbers; runs of before sealed feedback have the decision alone."""
    for folder in (f"{mlflow_run.SEALED}/gate", "gate"):
        with contextlib.suppress(RegistryError):
            path = artifacts.fetch(f"runs:/{run.id}/{folder}/shown.json")
            return from_json(ShownDecision, path.read_bytes())
    decision = from_json(
        Decision, artifacts.fetch(f"runs:/{run.id}/gate/decision.json").read_bytes()
    )
    return ShownDecision(
        **{field.name: getattr(decision, field.name) for field in fields(Decision)},
        feedback="open",
        evaluation_rows=decision.rows,
        open_part=None,
    )
