"""Prefect tasks: who is champion, and the succession."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from tasks.contracts import digest
from tasks.contracts.errors import EvaluationError, NoSuchChampion, RegistryError, SealBroken
from tasks.contracts.metrics import LOSS, NO_LOSS, other_tokenizer
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import Decision, ModelRef, Scores, VersionRef, from_json
from tasks.models.tokenizer_digest import tokenizer_digest
from tasks.orchestration.task_options import STEP
from tasks.processes import workspace
from tasks.register import claims, log_model, lookup, rollback
from tasks.tracking import artifacts, connection, history, mlflow_run
from tasks.tracking.predictions_table import read_table


@task(name="champion", **STEP)
def current_champion(name: str) -> claims.Version | None:
    """The champion now, after finishing whatever a dead run left unfinished."""
    return claims.champion(mlflow_run.current().client, name)


@task(name="register", **STEP)
def register(
    model: ModelRef, challenger: Scores, decision: Decision, headline: str, recipe: Recipe
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
    won = claims.succeed(
        run.client,
        recipe.name,
        decision.opponent_version or claims.NOBODY,
        source=uri,
        tags=tags,
        description=headline,
    )
    if won is None:
        get_run_logger().info("another challenger was promoted meanwhile; gating again, against it")
        return None
    return VersionRef(recipe.name, won.number, model.digest)


def promoted_before(name: str) -> tuple[Decision, VersionRef] | None:
    """This very run's promotion, when it crashed after it and is now taken up again.

    The champion may be another by now: a promotion is not judged twice.
    """
    run = mlflow_run.current()
    if not run.resumed:
        return None
    mine = [v for v in claims.versions(run.client, name) if v.finished and v.run_id == run.id]
    if not mine:
        return None
    path = artifacts.fetch(f"runs:/{run.id}/gate/decision.json")
    decision = from_json(Decision, path.read_bytes())
    return decision, VersionRef(name, mine[0].number, mine[0].digest)


def require_comparable(champion: claims.Version | None, base: Path, recipe: Recipe) -> None:
    """Refuse a champion that the gate could not compare by loss: before training, not after.

    Raises EvaluationError for one whose package knows no loss (none of those has its tokenizer on
    record), SealBroken for one with another tokenizer than the base's.
    """
    if champion is None or recipe.gate.metric != LOSS:
        return
    who, found = f"champion v{champion.number}", tokenizer_digest(base)
    if not champion.tokenizer:
        raise EvaluationError(NO_LOSS.format(who))
    if found != champion.tokenizer:
        raise SealBroken(other_tokenizer(found, champion.tokenizer, who))


def as_model(version: claims.Version) -> ModelRef:
    """The champion's package, by reference; evaluation fetches it only when it must."""
    return ModelRef(version.source, version.digest, base_digest="")


def require_model(name: str) -> None:
    """Raises NoSuchChampion, naming the models there are, for a name that has none; makes nothing."""
    if not connection.nothing_yet():
        client = connection.connect()
        if claims.versions(client, name):
            return
        known = sorted(model.name for model in client.search_registered_models())
    else:
        known = []
    raise NoSuchChampion(
        f"no model {name!r} is registered in MLflow at {connection.shown_uri()}; "
        f"it has: {', '.join(known) or 'none'}"
    )


@task(name="former champion", **STEP)
def former_champion(name: str, to: int | None) -> tuple[claims.Version, int | None]:
    """The version to go back to, loaded and checked, and the champion's number now; changes nothing."""
    run = mlflow_run.current()
    known = claims.versions(run.client, name)
    mine = [v for v in known if v.run_id == run.id]  # of an earlier try
    target = rollback.choose(run.client, name, mine[0].rollback_to if mine else to)
    folder = artifacts.fetch(target.source) / "artifacts" / "package"
    if digest.of_folder(folder) != target.digest:
        raise RegistryError(
            f"model {name!r}: the files of v{target.number} are not those that were judged (digest "
            f"{target.digest[:16]}...); restore {folder} from a backup, or name another version"
        )
    rollback.check(target, workspace.work_folder() / "register" / run.id)
    return target, max((v.number for v in known if v.finished), default=None)


@task(name="restore", **STEP)
def restore(
    name: str, target: claims.Version, over: int | None, reason: str = ""
) -> tuple[VersionRef, str]:
    """Make an earlier version champion again, over the champion that was asked about; once a run."""
    run = mlflow_run.current()
    # Before the claim, as for promotions: the registry then says whether it took effect.
    history.write(run, rollback.record(name, target, None, run.id, reason))
    won = rollback.put_back(run.client, name, target, run.id, reason, over)
    message = f"ROLLED BACK {name} v{won.number}: the model of v{target.number} is champion again"
    history.write(run, rollback.record(name, target, won, run.id, reason))
    return VersionRef(name, won.number, won.digest), message


def trained_by(client: Any, name: str, version: claims.Version) -> str:
    """The id of the MLflow run that trained a version's model, rollbacks to it seen through."""
    same = [v for v in claims.versions(client, name) if v.digest == version.digest]
    return next((v.run_id for v in same if v.rollback_to is None), version.run_id)


def standing(client: Any, name: str) -> claims.Version | None:
    """The champion now, for readers outside a flow run."""
    return claims.champion(client, name)


def package_of(client: Any, reference: str) -> tuple[Path, str]:
    """The package of a registered or logged model on this machine, checked, and how it is called.

    `reference`: NAME (its champion), NAME@ALIAS, NAME/VERSION, or a `models:/` URI. Raises
    RegistryError when there is no such model, or when its files are not those that were judged.
    """
    found = lookup.look_up(client, reference)
    return artifacts.package(found.uri, found.digest), found.shown


def history_of(client: Any, name: str) -> list[history.HistoryRecord]:
    """The history, with the versions that the registry says took effect."""
    took_effect = {v.run_id: v.number for v in claims.versions(client, name) if v.finished}
    return history.read(client, name, took_effect)
