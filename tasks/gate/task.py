"""Prefect tasks: decide from stored scores alone, and store the verdict before anything acts on it.

Over 250 lines: the two tasks of one step share what they store.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from pydantic import TypeAdapter

from tasks.contracts import digest
from tasks.contracts.documents import plain_text
from tasks.contracts.errors import EvaluationError, RegistryError
from tasks.contracts.recipe import Gate, Recipe
from tasks.contracts.records import (
    DatasetRef,
    Decision,
    Prediction,
    Scores,
    ShownDecision,
    from_json,
    read_rows,
    to_json,
)
from tasks.contracts.slice_labels import LABELS, Labels, labelled, read_labels, write_labels
from tasks.gate.clusters import clusters
from tasks.gate.decay import Decay, decay_headline, decay_markdown, decide_decay
from tasks.gate.earlier_looks import EarlierLook, look_of
from tasks.gate.look_key import decided_from, judged_by
from tasks.gate.parts import (
    Setting,
    decide_by_parts,
    deciding_rows,
    open_rows,
    part_of_each,
    record_of,
    split_of,
)
from tasks.gate.power import Advice, advise
from tasks.gate.recompute import EARLIER, labels_in
from tasks.gate.shown import before_promotion, shown
from tasks.gate.slice_members import small_slices
from tasks.gate.slices import about_small
from tasks.gate.stored import check as check_stored
from tasks.gate.stored import read_shown
from tasks.orchestration.task_options import STEP
from tasks.processes import resource_usage, workspace
from tasks.tracking import artifacts, history, mlflow_run
from tasks.tracking.looks import BASE
from tasks.tracking.predictions_table import read_table, write_table

__all__ = [
    "Advice",
    "Decay",
    "advice",
    "check_stored",
    "decay",
    "decay_headline",
    "gate",
    "read_shown",
]

OWN = "look.json"  # what a later look needs of this one
SHOWN = "shown.json"  # what people are told
README = """\
Here is what the gate decided from: every row of the evaluation set, those that decide included.

    python -m tasks.gate.recompute FOLDER/sealed/gate

makes the decision again and compares, without printing a number. Reading the scores or outputs here and
then choosing settings by them uses the evaluation set up: the next promotion may be luck, and no count of
looks knows it. What may be read freely is in the folder `gate`: the open rows.
"""


def advice(rows: Path, recipe: Recipe) -> Advice:
    """What the evaluation rows in this file can show, before anything is spent on them.

    Labels that gate.slices needs lie beside it.
    """
    evaluation, split, slices = read_rows(rows), split_of(recipe), recipe.gate.slices
    part = part_of_each(evaluation, split, recipe.gate.open_share)
    deciding = [row for row, name in zip(evaluation, part, strict=True) if name == "deciding"]
    cluster = clusters(deciding)
    documents = max(cluster, default=-1) + 1
    named = split == "named"
    found = advise(documents, len(deciding), part.count("open"), recipe.gate, named=named)
    if not slices or found.problem:
        return found
    labels = read_labels(rows.with_name(LABELS)) if labelled(slices) else {}
    small = about_small(small_slices(slices, deciding, cluster, labels))
    return replace(found, fact="; ".join([found.fact, *small]))


@task(name="gate", **STEP)
def gate(
    challenger: Scores,
    opponent: Scores,
    base: Scores,
    lead3: Scores,
    champion_version: int | None,
    dataset: DatasetRef,
    recipe: Recipe,
    remarks: tuple[str, ...] = (),
) -> ShownDecision:
    """Promote, reject or inconclusive: the challenger against the champion, or else the base.

    The decision itself is stored; what is returned, and so can be shown, is what shown.py leaves of it.
    `remarks`: on the evaluation rows and the challenger; they stand in the decision's notes.
    """
    run, watch = mlflow_run.current(), resource_usage.Watch()
    labels = _labels(dataset, recipe.gate)  # a loss of them shall not cost a look
    scores = {"challenger": challenger, "opponent": opponent, "base": base, "lead3": lead3}
    tables, split = {who: _table(record) for who, record in scores.items()}, split_of(recipe)
    deciding = {
        who: deciding_rows(tables[who], recipe.gate, split) for who in ("challenger", "opponent")
    }
    against = opponent.model_digest if champion_version else BASE
    looks = _count_look(run, challenger, against, deciding, dataset, recipe, labels)
    kind: Literal["champion", "base"] = "champion" if champion_version else "base"
    earlier = _earlier(run, against, dataset.evaluation_digest)
    setting = Setting(recipe.gate, split, kind, champion_version, looks, tuple(earlier), labels)
    decision, open_part = decide_by_parts(tables, scores, setting)
    decision = replace(decision, notes=(*decision.notes, *remarks))
    told = shown(decision, open_part, recipe.gate, len(tables["challenger"]), remarks)
    own = look_of(decision, recipe.gate.metric, deciding["challenger"], deciding["opponent"])
    public = before_promotion(told, recipe.gate)
    _store(run, decision, (told, public), own, scores, tables, setting)
    verdict = {"precis.verdict": decision.verdict}  # to filter and sort runs by, in MLflow's UI
    run.write(
        tags=verdict | history.decision_tags(run, recipe, public),
        metrics=_metrics(told, recipe.gate.metric)
        | resource_usage.as_metrics("gate", watch.cost()),
    )
    for reason in public.reasons:
        get_run_logger().info(f"{decision.verdict}: {reason}")
    return told


def _count_look(
    run: mlflow_run.Run,
    challenger: Scores,
    against: str,
    deciding: Mapping[str, list[Prediction]],
    dataset: DatasetRef,
    recipe: Recipe,
    labels: Labels,
) -> int:
    """The number of this look, counted before the verdict: who is killed on a bad one has looked too."""
    return history.count_look(
        run,
        challenger.model_digest,
        judged_by(recipe.gate, challenger, recipe.evaluation),
        against,
        dataset.evaluation_digest,
        [plain_text(row.document) for row in deciding["challenger"]],
        decided_from(deciding["challenger"], deciding["opponent"], recipe.gate, labels),
    )


def _metrics(told: ShownDecision, primary: str) -> dict[str, float]:
    """The run's metrics: the gain under open feedback, else the open part's means and gain.

    Those of the deciding rows are written once a version is registered: another challenger may
    have been promoted first, and this one then be refused.
    """
    if told.feedback == "open":
        return history.gain_metrics(told.metrics[primary])
    if told.open_part is None:
        return {}
    return history.part_metrics(told.open_part.metrics, primary, "open/")


@task(name="decay", **STEP)
def decay(sealed: Scores, fresh: Scores, champion_version: int, recipe: Recipe) -> Decay:
    """Whether the champion scores worse on fresh rows than on the sealed evaluation set."""
    run, settings = mlflow_run.current(), recipe.gate
    tables = {"sealed": _table(sealed), "fresh": _table(fresh)}
    records = {
        "sealed": record_of(tables["sealed"], sealed),
        "fresh": record_of(tables["fresh"], fresh),
    }
    decision = decide_decay(
        tables["sealed"],
        tables["fresh"],
        settings,
        recipe.evaluation.max_decay,
        champion_version=champion_version,
        sealed_scores=records["sealed"],
        fresh_scores=records["fresh"],
    )
    inputs = {"max_decay": recipe.evaluation.max_decay, "champion_version": champion_version}
    is_sealed = settings.feedback == "sealed"
    folder = _folder(run, "decay", is_sealed)
    _write_folder(folder, "decay", decision, records, settings, inputs)
    if is_sealed:  # its tables hold what the champion wrote for deciding rows
        _log_sealed(run, folder, "decay")
    else:
        run.log_folder(folder, "decay")
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


def _labels(dataset: DatasetRef, settings: Gate) -> Labels:
    if not labelled(settings.slices):
        return {}
    return labels_in(artifacts.fetch(dataset.uri), dataset.labels_digest)


def _earlier(run: mlflow_run.Run, opponent: str, rows_digest: str) -> list[EarlierLook]:
    """The looks of earlier runs that are at hand: a run that was killed, deleted or pruned has none."""
    looks = []
    for run_id in history.runs_that_looked(run, opponent, rows_digest):
        for folder in ("gate", f"{mlflow_run.SEALED}/gate"):
            with contextlib.suppress(RegistryError):
                stored = artifacts.fetch(f"runs:/{run_id}/{folder}/{OWN}")
                looks.append(from_json(EarlierLook, stored.read_bytes()))
    return looks


def _store(
    run: mlflow_run.Run,
    decision: Decision,
    told: tuple[ShownDecision, ShownDecision],
    own: EarlierLook,
    scores: dict[str, Scores],
    tables: dict[str, list[Prediction]],
    setting: Setting,
) -> None:
    """Store all that the decision was made from (recompute.py), and in `gate` what may be shown of it.

    `told`: what may be shown once a promotion took place, and what until then.
    """
    sealed = setting.split != "none"
    folder = _folder(run, "gate", sealed)
    (folder / OWN).write_text(to_json(own))
    earlier = TypeAdapter(list[EarlierLook]).dump_json(list(setting.earlier))
    (folder / EARLIER).write_bytes(earlier)
    if setting.labels:
        write_labels(folder / LABELS, setting.labels)
    inputs = {
        "opponent_kind": decision.opponent,
        "opponent_version": decision.opponent_version,
        "looks": decision.looks,
        "split": setting.split,
        "earlier_digest": digest.of_file(folder / EARLIER) if setting.earlier else "",
        "labels_digest": digest.of_file(folder / LABELS) if setting.labels else "",
    }
    _write_folder(folder, "gate", decision, scores, setting.gate, inputs)
    after, public = told
    if sealed:
        (folder / SHOWN).write_text(to_json(after))
        _log_sealed(run, folder, "gate")
        folder = _folder(run, "gate", sealed=False)
        for who, rows in tables.items():
            write_table(folder / f"{who}.json", open_rows(rows, setting.gate, setting.split))
    (folder / SHOWN).write_text(to_json(public))
    artifacts.remember(run.log_folder(folder, "gate"), folder)


def _log_sealed(run: mlflow_run.Run, folder: Path, kind: str) -> None:
    run.log_folder(folder, f"{mlflow_run.SEALED}/{kind}")
    readme = workspace.work_folder() / "sealed" / run.id / "README.txt"
    readme.parent.mkdir(parents=True, exist_ok=True)
    readme.write_text(README)
    run.log_file(readme, mlflow_run.SEALED)


def _folder(run: mlflow_run.Run, kind: str, sealed: bool) -> Path:
    folder = workspace.work_folder() / (f"sealed-{kind}" if sealed else kind) / run.id
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_folder(
    folder: Path,
    kind: str,
    decision: Decision | Decay,
    scores: dict[str, Scores],
    settings: Gate,
    inputs: dict[str, Any],
) -> None:
    """A decision, its tables and its settings."""
    (folder / "decision.json").write_text(to_json(decision))
    records = {who: json.loads(to_json(record)) for who, record in scores.items()}
    values = {"gate": settings.model_dump(mode="json"), **inputs, "scores": records}
    (folder / f"{kind}_inputs.json").write_text(json.dumps(values, indent=2))
    for who, record in scores.items():
        (folder / f"{who}.json").write_bytes(Path(artifacts.fetch(record.uri)).read_bytes())
