"""Prefect tasks: the champion, promotion and rollback; and reading the registry without a flow.

Over 250 lines: what flows may use of this step is listed here.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from tasks.contracts.errors import EvaluationError, NoSuchChampion, RegistryError, SealBroken
from tasks.contracts.formatting import headline, nearest
from tasks.contracts.metrics import LOSS, NO_LOSS, other_tokenizer
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import AdapterParts, ModelRef, Scores, ShownDecision, VersionRef
from tasks.models.tokenizer_digest import tokenizer_digest
from tasks.orchestration.task_options import STEP
from tasks.processes import workspace
from tasks.register import (
    adapter_version,
    claims,
    log_model,
    lookup,
    rollback,
    verified,
    version_tags,
)
from tasks.register.claims import ALIAS, Version, find_champion
from tasks.register.claims import versions as versions_of
from tasks.register.description import put as link_page
from tasks.register.history_entries import history_of
from tasks.register.leftovers import remove as remove_leftovers
from tasks.register.lookup import find_version, name_in, resolve, version_of
from tasks.register.moves import Move, Why
from tasks.register.moves import note as note_told
from tasks.register.moves import untold as untold_moves
from tasks.register.own_promotion import (
    decided_by_earlier_try,
    promoted_by_earlier_try,
    public_decision,
    publish_promotion,
    succession,
)
from tasks.register.pull import Pulled, pull
from tasks.register.pull_adapter import PulledAdapter, pull_adapter
from tasks.register.same_inputs import require_readable_rows, require_same_inputs
from tasks.register.stored_rows import stored_rows
from tasks.register.verified import Verified
from tasks.register.verified import add as add_verified
from tasks.register.verified import now as verified_now
from tasks.register.verify import (
    check_files,
    check_succession,
    check_summaries,
    readable_versions,
)
from tasks.register.verify_records import (
    check_history,
    check_promotion,
    check_refusal,
    check_rollback,
)
from tasks.register.version_tags import judged_as
from tasks.tracking import artifacts, checked_package, connection, history, mlflow_run
from tasks.tracking.predictions_table import read_table

__all__ = [
    "ALIAS",
    "Move",
    "Pulled",
    "PulledAdapter",
    "Verified",
    "Version",
    "Why",
    "add_verified",
    "as_model",
    "check_files",
    "check_history",
    "check_promotion",
    "check_refusal",
    "check_rollback",
    "check_succession",
    "check_summaries",
    "current_champion",
    "decided_by_earlier_try",
    "find_champion",
    "find_version",
    "former_champion",
    "history_of",
    "judged_as",
    "link_page",
    "name_in",
    "note_told",
    "package_of",
    "promoted_by_earlier_try",
    "public_decision",
    "publish_promotion",
    "pull",
    "pull_adapter",
    "readable_versions",
    "register",
    "remove_leftovers",
    "require_comparable",
    "require_known",
    "require_model",
    "require_readable_rows",
    "require_same_inputs",
    "resolve",
    "restore",
    "stored_rows",
    "succession",
    "trained_by",
    "untold_moves",
    "verified_lines",
    "verified_now",
    "version_of",
    "versions_of",
]


@task(name="champion", **STEP)
def current_champion(name: str) -> claims.Version | None:
    """The champion of the running flow's model; see `find_champion`."""
    return find_champion(mlflow_run.current().client, name)


@task(name="register", **STEP)
def register(
    model: ModelRef,
    challenger: Scores,
    decision: ShownDecision,
    recipe: Recipe,
    champion: claims.Version | None,
    parts: AdapterParts | None = None,
) -> VersionRef | None:
    """Make the challenger champion; None when another succeeded the same champion first.

    `champion`: the one it was judged against, None if it was the untuned base. `parts`: what the version is
    to hold in place of the merged model, if the recipe says so. Log the model, have a
    clean process reproduce stored summaries, claim the succession, move the alias: a crash anywhere leaves
    the alias where it was, or fully moved.
    """
    run = mlflow_run.current()
    work = workspace.work_folder() / "register" / run.id
    package, base_tags = None, dict[str, str]()
    if parts:
        package = work / "adapter-package"
        base_tags = adapter_version.tags_of(
            adapter_version.make_package(run.client, model, parts, package, run.id)
        )
    uri = log_model.log_model(
        run.client,
        model,
        experiment_id=run.experiment_id,
        run_id=run.id,
        name=recipe.name,
        scratch=workspace.work_folder() / "served",
        adapter_package=package,
    )
    texts = log_model.reproduce(uri, read_table(artifacts.fetch(challenger.uri)), work)
    tags = {
        claims.DIGEST: model.digest,
        claims.RUN_ID: run.id,
        claims.RECORD: history.decision_tags(run, recipe, decision)[history.RECORD],
        "precis.evaluation_digest": decision.evaluation_digest,
        f"precis.{recipe.gate.metric}": f"{decision.metrics[recipe.gate.metric].challenger:.4f}",
        version_tags.VERIFIED: verified.as_tag([verified.now("registration", texts)]),
        **log_model.served_digest(run.client, uri),
        **base_tags,
    }
    if challenger.tokenizer_digest:
        tags[claims.TOKENIZER] = challenger.tokenizer_digest
    if decision.approval:
        tags |= {
            version_tags.APPROVED_BY: decision.approval.by,
            version_tags.APPROVAL_COMMENT: decision.approval.comment,
        }
    version = claims.succeed(
        run.client,
        recipe.name,
        champion,
        source=uri,
        tags=tags,
        description=headline(decision, recipe.name, None, recipe.gate.metric),
    )
    if parts:  # stored, and not needed any more
        shutil.rmtree(Path(parts.base).parent, ignore_errors=True)
    if version is None:
        get_run_logger().info("another challenger was promoted meanwhile; gating again, against it")
        return None
    return VersionRef(recipe.name, version.number, model.digest)


def require_comparable(champion: claims.Version | None, base: Path, recipe: Recipe) -> None:
    """Refuse a champion that the gate could not compare by loss: before training, not after.

    Raises EvaluationError for one whose package knows no loss (none of those has its tokenizer on
    record), SealBroken for one with another tokenizer than the base's.
    """
    if champion is None or recipe.gate.metric != LOSS:
        return
    title, base_tokenizer = f"champion v{champion.number}", tokenizer_digest(base)
    if not champion.tokenizer:
        raise EvaluationError(NO_LOSS.format(title))
    if base_tokenizer != champion.tokenizer:
        raise SealBroken(other_tokenizer(base_tokenizer, champion.tokenizer, title))


def as_model(version: claims.Version) -> ModelRef:
    """The champion's package, by reference: evaluation fetches it only if it has no stored scores."""
    return ModelRef(version.source, version.digest, base_digest="")


def require_model(name: str) -> None:
    """Raises NoSuchChampion, naming the models that exist, for a name without one; creates nothing."""
    if not connection.nothing_yet():
        client = connection.connect()
        if claims.versions(client, name):
            return
        names = [model.name for model in client.search_registered_models()]
    else:
        names = []
    raise NoSuchChampion(
        f"no model {name!r} is registered in MLflow at {connection.shown_uri()}{nearest(name, names)}"
    )


def require_known(name: str) -> None:
    """Raises NoSuchChampion, with the nearest name, for one that has neither runs nor versions."""
    names: list[str] = []
    if not connection.nothing_yet():
        client = connection.connect()
        if client.get_experiment_by_name(name) or claims.versions(client, name):
            return
        # Every MLflow store has an experiment of the name Default.
        names = [each.name for each in client.search_experiments() if each.name != "Default"]
    raise NoSuchChampion(
        f"MLflow at {connection.shown_uri()} knows no model {name!r}{nearest(name, names)}"
    )


@task(name="former champion", **STEP)
def former_champion(name: str, to: int | None) -> rollback.Plan:
    """What a rollback is to do: the version to go back to, loaded and checked. Changes no champion.

    It is decided once a run: a retry finds it in the run's tags.
    """
    run = mlflow_run.current()
    plan = rollback.plan(run.client, name, to, run.id, run.resumed)
    if plan.in_effect:
        return plan
    target = plan.target
    try:
        checked_package.package(target.source, target.digest)
    except RegistryError as error:
        raise RegistryError(
            f"model {name!r}: the files of v{target.number} are not those that were judged ({error}); "
            "restore them from a backup, or name another version"
        ) from error
    rollback.check_loads(target, workspace.work_folder() / "register" / run.id)
    return plan


@task(name="restore", **STEP)
def restore(name: str, plan: rollback.Plan, reason: str = "") -> tuple[VersionRef, str]:
    """Make an earlier version champion again, if the champion is still the expected one; once a run."""
    run, target = mlflow_run.current(), plan.target
    now = plan.in_effect or rollback.in_effect(run.client, name, target)
    if now and now.run_id != run.id:
        message = f"{name}: v{now.number} is champion, with the model of v{now.rollback_to or now.number}: "
        message += (
            "a rollback that did not end well had come that far"
            if plan.in_effect
            else (f"that is v{target.number}'s already")
        )
        message += "; nothing else was changed"
        if plan.in_effect:
            message += f". `precis rollback {name}` again goes back to the champion before"
        return VersionRef(name, now.number, now.digest), message
    # Before the claim, as for promotions: the registry then says whether it took effect.
    reasons = "; ".join(filter(None, (reason, plan.note)))
    record = rollback.history_record(name, target, None, run.id, reasons)
    history.write(run, record)
    version = rollback.restore(
        run.client,
        name,
        target,
        run.id,
        reason,
        expected=plan.expected,
        record=history.as_json(record),
    )
    message = (
        f"ROLLED BACK {name} v{version.number}: the model of v{target.number} is champion again"
    )
    message += f" ({plan.note})" if plan.note else ""
    history.write(run, replace(record, version=version.number))
    return VersionRef(name, version.number, version.digest), message


def trained_by(client: Any, name: str, version: claims.Version) -> str:
    """The id of the MLflow run that trained a version's model, also of a version that a rollback made."""
    same_model = [v for v in claims.versions(client, name) if v.digest == version.digest]
    return next((v.run_id for v in same_model if v.rollback_to is None), version.run_id)


def verified_lines(client: Any, name: str, version: claims.Version) -> list[str]:
    """Where its model was seen to write what it was judged by, as earlier versions too; oldest first."""
    same_model = [v for v in claims.versions(client, name) if v.digest == version.digest]
    notes = [note for each in same_model for note in verified.read(each.verified)]
    return [note.line() for note in sorted(notes, key=lambda note: note.time)]


def package_of(client: Any, reference: str) -> tuple[Path, str]:
    """The package of a registered or logged model on this machine, checked, and its name in messages.

    `reference`: NAME (its champion), NAME@ALIAS, NAME/VERSION, or a `models:/` URI. Raises
    RegistryError when there is no such model, or when its files are not those that were judged.
    """
    model = lookup.resolve(client, reference)
    return checked_package.package(model.uri, model.digest), model.title
