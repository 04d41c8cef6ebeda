"""A run's stored decision, checked against itself, against the run's tags, and by computing it again.

Over 250 lines: all that a run stores of its decision is checked in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from tasks.contracts import digest
from tasks.contracts.errors import PrecisError
from tasks.contracts.findings import Findings
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import (
    AdapterRef,
    Decision,
    OpenPart,
    Prediction,
    Scores,
    ShownDecision,
    from_json,
)
from tasks.gate import recompute
from tasks.gate.guardrails import INVENTED
from tasks.gate.parts import open_rows
from tasks.gate.sharper_rules import SCHEMA_BEFORE
from tasks.gate.shown import before_promotion, shown
from tasks.tracking import history, mlflow_run, step_cache
from tasks.tracking.fresh_copy import fetch_fresh
from tasks.tracking.predictions_table import read_table

SHOWN = "shown.json"
SCHEMA_OF_SHOWN = 3  # from which on what is shown is stored as it is made today


@dataclass(frozen=True)
class StoredDecision:
    """A decision as it was computed again. `told`: what may be shown of it once the version is registered."""

    told: ShownDecision
    metric: str
    challenger: list[Prediction]
    device: str  # that the challenger's summaries were written on: cpu or cuda; empty: not recorded


def check(client: Any, run_id: str, scratch: Path, found: Findings) -> StoredDecision | None:
    """Check what a run stored; None where its decision cannot be computed again, which is a difference."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        found.differences.append(
            f"MLflow run {run_id} is gone, so its decision cannot be computed again ({error}); restore the "
            "store from a backup"
        )
        return None
    if run.info.lifecycle_stage == "deleted":
        found.differences.append(
            f"MLflow run {run_id} was deleted; restore it: mlflow runs restore --run-id {run_id}"
        )
    name = f"{mlflow_run.SEALED}/gate"
    folder = fetch_fresh(run_id, name, scratch)
    if folder is None:
        name = "gate"
        folder = fetch_fresh(run_id, name, scratch)
    where = f"runs:/{run_id}/{name}"
    if folder is None:
        found.differences.append(
            f"runs:/{run_id} has neither sealed/gate nor gate, which its decision was stored in; restore "
            "them from a backup"
        )
        return None
    try:
        stored = from_json(Decision, (folder / recompute.DECISION).read_bytes())
        made = recompute.recompute_all(folder)
    except (PrecisError, OSError, ValidationError) as error:
        message = str(error).replace(f"{folder}/", f"{where}/").replace(str(folder), where)
        found.differences.append(message.replace("fetch it again", "restore it from a backup"))
        return None
    if different := _different(stored, made.decision, ("notes",)):
        found.differences.append(
            f"{where}/{recompute.DECISION} is not what its scores give: {', '.join(different)} differ; "
            "restore it from a backup"
        )
    else:
        found.checked.append(f"decision {stored.verdict}, computed again from {stored.rows} rows")
        if made.remark:
            found.remarks.append(f"{where}/{recompute.DECISION}: {made.remark}")
    challenger = list(made.tables["challenger"] or ())
    told = shown(made.decision, made.open_part, made.inputs.gate, len(challenger))
    _check_scores(run, made, scratch, found)
    if stored.schema_version >= SCHEMA_OF_SHOWN:
        _check_shown(run, made, told, scratch, found)
    _check_run(run, made, told, scratch, found)
    return StoredDecision(told, made.inputs.gate.metric, challenger, _device(run_id, scratch))


def read_shown(run_id: str, scratch: Path) -> ShownDecision | None:
    """What people were told of a run's decision; None of runs of before this was stored."""
    file = fetch_fresh(run_id, f"gate/{SHOWN}", scratch / "shown")
    return from_json(ShownDecision, file.read_bytes()) if file else None


def _different(one: Any, other: Any, left_out: tuple[str, ...]) -> list[str]:
    names = [field.name for field in fields(one) if field.name not in left_out]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def _check_scores(run: Any, made: recompute.Recomputed, scratch: Path, found: Findings) -> None:
    """Each table's digest against the run's tags, and against the table that it is a copy of."""
    run_id = run.info.run_id
    try:
        recorded = step_cache.results(run.data.tags, "evaluate", Scores)
    except ValidationError:
        found.differences.append(
            f"a tag {step_cache.STEP_TAGS}evaluate... of MLflow run {run_id} holds no scores; restore it"
        )
        return
    known = {(one.table_digest, one.model_digest, one.evaluation_digest) for one in recorded}
    for who, scores in made.inputs.scores.items():
        key = (scores.table_digest, scores.model_digest, scores.evaluation_digest)
        if recorded and key not in known:
            found.differences.append(
                f"{who}: its scores in gate_inputs.json are not those that MLflow run {run_id} has as a tag "
                f"({step_cache.STEP_TAGS}evaluate...): one of them was changed; restore it from a backup"
            )
        _check_table(who, scores, scratch, found)


def _check_table(who: str, scores: Scores, scratch: Path, found: Findings) -> None:
    if not scores.uri.startswith("runs:/") or not scores.table_digest:
        return
    run_id, _, name = scores.uri.removeprefix("runs:/").partition("/")
    try:
        table = fetch_fresh(run_id, name, scratch / "tables")
    except (PrecisError, MlflowException, OSError):
        table = None
    if table is None:
        found.remarks.append(f"{scores.uri} is gone; the decision has a copy of it")
    elif digest.of_file(table) != scores.table_digest:
        found.differences.append(
            f"{scores.uri}, the predictions of the {who}, was changed after it was scored; restore it "
            "from a backup"
        )


def _check_shown(
    run: Any, made: recompute.Recomputed, told: ShownDecision, scratch: Path, found: Findings
) -> None:
    """What people are shown of the decision: the open rows, and the numbers."""
    run_id = run.info.run_id
    folder = fetch_fresh(run_id, "gate", scratch)
    if folder is None:
        found.differences.append(f"runs:/{run_id}/gate is gone; restore it from a backup")
        return
    allowed = [_plain(told), _plain(before_promotion(told, made.inputs.gate))]
    if (folder / SHOWN).is_file():
        text = (folder / SHOWN).read_bytes()
        if _read(lambda: _plain(from_json(ShownDecision, text))) not in allowed:
            found.differences.append(
                f"runs:/{run_id}/gate/{SHOWN} does not tell what was decided; restore it from a backup"
            )
    if made.inputs.split == "none":
        return  # the tables in it are those of the decision, which were checked
    for who, rows in made.tables.items():
        table, expected = (
            folder / f"{who}.json",
            open_rows(rows or (), made.inputs.gate, made.inputs.split),
        )
        if table.is_file() and _read(partial(read_table, table)) != expected:
            found.differences.append(
                f"runs:/{run_id}/gate/{who}.json is not the open rows of the predictions; restore it from a "
                "backup"
            )


def _read(read: Callable[[], Any]) -> Any:
    """What a function reads; None where that is garbage."""
    try:
        return read()
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _plain(told: ShownDecision) -> ShownDecision:
    """Without notes, whose wording may change, and what the open rows gave by rules that are not kept."""
    part = told.open_part
    open_part: OpenPart | None = replace(part, notes=()) if part else None
    if open_part and told.schema_version == SCHEMA_BEFORE:
        kept = tuple(one for one in open_part.guardrails if one.name != INVENTED)
        open_part = replace(open_part, guardrails=kept)
    return replace(told, notes=(), open_part=open_part)


def _check_run(
    run: Any, made: recompute.Recomputed, told: ShownDecision, scratch: Path, found: Findings
) -> None:
    """The run's verdict, metrics, recipe and adapter."""
    run_id, tags = run.info.run_id, run.data.tags
    where, differences = f"MLflow run {run_id}", found.differences
    verdict = tags.get("precis.verdict", "")
    if verdict != made.decision.verdict:
        differences.append(
            f"{where}: its tag precis.verdict holds {verdict[:40]!r}, and the decision is "
            f"{made.decision.verdict}; set the tag again"
        )
    if not told.withheld:
        metric = made.inputs.gate.metric
        expected = history.part_metrics(told.metrics, metric)
        for name, value in expected.items():
            logged = run.data.metrics.get(name, value)
            # A database may round the last digit.
            if abs(logged - value) > 1e-9 * max(1.0, abs(value)):
                differences.append(f"{where}: its metric {name} is {logged:g}, and was {value:g}")
    _check_recipe(run_id, run.data.params, scratch, found)
    _check_adapter(run_id, tags, scratch, found)


def _check_recipe(run_id: str, params: Mapping[str, str], scratch: Path, found: Findings) -> None:
    file = fetch_fresh(run_id, "recipe.yaml", scratch)
    if file is None:
        found.remarks.append(f"runs:/{run_id}/recipe.yaml is gone")
        return
    try:
        recipe = Recipe.model_validate(yaml.safe_load(file.read_bytes()))
    except (ValidationError, yaml.YAMLError, ValueError) as error:
        found.differences.append(
            f"runs:/{run_id}/recipe.yaml is not a recipe of this version of precis "
            f"({str(error).splitlines()[0]}); if it was changed, restore it from a backup"
        )
        return
    values = mlflow_run.flat(recipe.model_dump(mode="json", exclude={"name"}))
    # MLflow may cut long values; settings that came later have no parameter.
    changed = [key for key, value in params.items() if not values.get(key, value).startswith(value)]
    if changed:
        found.differences.append(
            f"runs:/{run_id}/recipe.yaml is not the recipe of the run: {', '.join(sorted(changed))} "
            "differ from the run's parameters; restore it from a backup"
        )


def _check_adapter(run_id: str, tags: Mapping[str, str], scratch: Path, found: Findings) -> None:
    try:
        adapters = step_cache.results(tags, "train", AdapterRef)
    except ValidationError:
        found.differences.append(
            f"MLflow run {run_id}: its tag precis.step.train... holds no adapter"
        )
        return
    for adapter in adapters:
        if not adapter.uri.startswith("runs:/"):
            continue
        owner, _, name = adapter.uri.removeprefix("runs:/").partition("/")
        try:
            folder = fetch_fresh(owner, name, scratch / "adapter")
        except (PrecisError, MlflowException, OSError):
            folder = None
        if folder is None:
            found.remarks.append(
                f"{adapter.uri}, the adapter, is gone; the merged model is what is served"
            )
        elif digest.of_folder(folder) != adapter.digest:
            found.differences.append(
                f"{adapter.uri}, the adapter, was changed; restore it from a backup"
            )


def _device(run_id: str, scratch: Path) -> str:
    file = fetch_fresh(run_id, "manifest.yaml", scratch)
    values = _read(lambda: yaml.safe_load(file.read_bytes())) if file else None
    return str(values.get("device", "")) if isinstance(values, dict) else ""
