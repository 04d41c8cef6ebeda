"""Prefect tasks: the champion, promotion and rollback; and reading the registry without a flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from tasks.contracts import digest
from tasks.contracts.errors import EvaluationError, NoSuchChampion, RegistryError, SealBroken
from tasks.contracts.formatting import headline
from tasks.contracts.metrics import LOSS, NO_LOSS, other_tokenizer
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import Decision, ModelRef, Scores, VersionRef, from_json
from tasks.models.tokenizer_digest import tokenizer_digest
from tasks.orchestration.task_options import STEP
from tasks.processes import workspace
from tasks.register import claims, log_model, lookup, rollback
from tasks.register.claims import find_champion
from tasks.register.same_inputs import require_readable_rows, require_same_inputs
from tasks.tracking import artifacts, connection, history, mlflow_run
from tasks.tracking.predictions_table import read_table

__all__ = [
    "as_model",
    "current_champion",
    "find_champion",
    "former_champion",
    "history_of",
    "package_of",
    "promoted_before",
    "register",
    "require_comparable",
    "require_model",
    "require_readable_rows",
    "require_same_inputs",
    "restore",
    "trained_by",
]


@task(name="champion", **STEP)
def current_champion(name: str) -> claims.Version | None:
    """The champion of the running flow's model; see `find_champion`."""
    return find_champion(mlflow_run.current().client, name)


@task(name="register", **STEP)
def register(
    model: ModelRef, challenger: Scores, decision: Decision, recipe: Recipe
) -> VersionRef | None:
    """Make the challenger champion; None when another succeeded the same champion first.

    Log the model, have a clean process reproduce stored summaries, claim the succession, move the
    alias: a crash anywhere leaves the alias where it was, or fully moved.
    """
    run = mlflow_run.current()
    work = workspace.work_folder() / "register" / run.id
    uri = log_model.log_model(
        run.client,
        model,
        experiment_id=run.experiment_id,
        run_id=run.id,
        name=recipe.name,
        scratch=workspace.work_folder() / "served",
    )
    log_model.reproduce(uri, read_table(artifacts.fetch(challenger.uri)), work)
    tags = {
        claims.DIGEST: model.digest,
        claims.RUN_ID: run.id,
        "precis.evaluation_digest": decision.evaluation_digest,
        f"precis.{recipe.gate.metric}": f"{decision.metrics[recipe.gate.metric].challenger:.4f}",
    }
    if challenger.tokenizer_digest:
        tags[claims.TOKENIZER] = challenger.tokenizer_digest
    version = claims.succeed(
        run.client,
        recipe.name,
        decision.opponent_version or claims.NOBODY,
        source=uri,
        tags=tags,
        description=headline(decision, recipe.name, None, recipe.gate.metric),
    )
    if version is None:
        get_run_logger().info("another challenger was promoted meanwhile; gating again, against it")
        return None
    return VersionRef(recipe.name, version.number, model.digest)


def promoted_before(name: str) -> tuple[Decision, VersionRef] | None:
    """This run's own promotion, when it crashed after it and is now retried; None otherwise.

    It is not judged again: the champion may be another one by now.
    """
    run = mlflow_run.current()
    if not run.resumed:
        return None
    promoted = [v for v in claims.versions(run.client, name) if v.finished and v.run_id == run.id]
    if not promoted:
        return None
    path = artifacts.fetch(f"runs:/{run.id}/gate/decision.json")
    decision = from_json(Decision, path.read_bytes())
    return decision, VersionRef(name, promoted[0].number, promoted[0].digest)


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
        names = sorted(model.name for model in client.search_registered_models())
    else:
        names = []
    raise NoSuchChampion(
        f"no model {name!r} is registered in MLflow at {connection.shown_uri()}; "
        f"it has: {', '.join(names) or 'none'}"
    )


@task(name="former champion", **STEP)
def former_champion(name: str, to: int | None) -> tuple[claims.Version, int | None]:
    """The version to go back to, loaded and checked, and the champion's number now; changes nothing."""
    run = mlflow_run.current()
    versions = claims.versions(run.client, name)
    of_this_run = [v for v in versions if v.run_id == run.id]  # from an earlier try
    target_number = of_this_run[0].rollback_to if of_this_run else to
    target = rollback.choose_target(run.client, name, target_number)
    folder = artifacts.fetch(target.source) / "artifacts" / "package"
    if digest.of_folder(folder) != target.digest:
        raise RegistryError(
            f"model {name!r}: the files of v{target.number} are not those that were judged (digest "
            f"{target.digest[:16]}...); restore {folder} from a backup, or name another version"
        )
    rollback.check_loads(target, workspace.work_folder() / "register" / run.id)
    return target, max((v.number for v in versions if v.finished), default=None)


@task(name="restore", **STEP)
def restore(
    name: str, target: claims.Version, expected: int | None, reason: str = ""
) -> tuple[VersionRef, str]:
    """Make an earlier version champion again, if the champion is still `expected`; once a run."""
    run = mlflow_run.current()
    # Before the claim, as for promotions: the registry then says whether it took effect.
    history.write(run, rollback.history_record(name, target, None, run.id, reason))
    version = rollback.restore(run.client, name, target, run.id, reason, expected)
    message = (
        f"ROLLED BACK {name} v{version.number}: the model of v{target.number} is champion again"
    )
    history.write(run, rollback.history_record(name, target, version, run.id, reason))
    return VersionRef(name, version.number, version.digest), message


def trained_by(client: Any, name: str, version: claims.Version) -> str:
    """The id of the MLflow run that trained a version's model, also of a version that a rollback made."""
    same_model = [v for v in claims.versions(client, name) if v.digest == version.digest]
    return next((v.run_id for v in same_model if v.rollback_to is None), version.run_id)


def package_of(client: Any, reference: str) -> tuple[Path, str]:
    """The package of a registered or logged model on this machine, checked, and its name in messages.

    `reference`: NAME (its champion), NAME@ALIAS, NAME/VERSION, or a `models:/` URI. Raises
    RegistryError when there is no such model, or when its files are not those that were judged.
    """
    model = lookup.resolve(client, reference)
    return artifacts.package(model.uri, model.digest), model.title


def history_of(client: Any, name: str) -> list[history.HistoryRecord]:
    """The history, with the versions that the registry says took effect."""
    took_effect = {v.run_id: v.number for v in claims.versions(client, name) if v.finished}
    return history.read(client, name, took_effect)
