"""Preflight: everything that can be known about a run before it spends GPU time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import approval
from tasks.contracts.errors import PrecisError
from tasks.contracts.recipe import Recipe
from tasks.costs import metric_models, step_costs
from tasks.costs.forecast import forecast_steps
from tasks.costs.preflight import estimate
from tasks.evaluate import task as evaluating
from tasks.gate.task import Advice, advice
from tasks.ingest.task import forms_of, preflight, seen_lines
from tasks.models import architecture, compatibility, engine_files, find_base
from tasks.models.prepared_base import PreparedBase
from tasks.processes import workspace
from tasks.register.task import (
    find_champion,
    require_comparable,
    require_readable_rows,
    require_same_inputs,
)
from tasks.tracking import connection
from tasks.train import task as training


@dataclass
class Checked:
    """Facts about a run, and the problems that would stop it."""

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)  # rows as the model sees them

    def as_text(self) -> str:
        """Facts and problems, for a terminal."""
        lines = [*self.seen, *(f"  {line}" for line in self.facts)]
        if not self.problems:
            return "\n".join([*lines, "nothing stands in the way of this run"])
        return "\n".join([*lines, "problems:", *(f"- {problem}" for problem in self.problems)])


def check(recipe: Recipe, shown: int = 0) -> Checked:
    """Check base, data, memory, disk, checkpoint store and registry; every problem at once.

    `shown`: how many training rows are shown as the model sees them.
    """
    result = Checked()
    with workspace.temporary_folder("check") as scratch:
        base = _base(recipe, result, scratch)
        advised: list[Advice] = []
        *data, report = preflight(
            recipe, base, shown, lambda rows: advised.append(advice(rows, recipe))
        )
        result.seen = seen_lines(report)
        for facts, problems in (data, training.preflight(recipe)):
            result.facts += facts
            result.problems += problems
        result.problems += evaluating.preflight(recipe) + approval.problems(recipe)
        result.facts += [one.fact for one in advised]
        result.problems += [one.problem for one in advised if one.problem]
        champion = _registry(recipe, base, report, result)
        if base and not result.problems:
            untold = engine_files.look(base.path, base.settings)
            result.facts += [f"other engines: {line}" for line in untold]
        if base and report and not result.problems:
            result.facts += step_costs.lines(forecast_steps(recipe, base, report), champion)
            result.facts += metric_models.lines(recipe, base, report)
    return result


def _base(recipe: Recipe, result: Checked, scratch: Path) -> PreparedBase | None:
    lookup = find_base.look_up(recipe.base, scratch)
    result.facts += lookup.facts
    result.problems += lookup.problems
    folder = lookup.folder
    if folder is None:
        return None
    try:
        problems = compatibility.problems(recipe, folder)
        problems += [] if problems else architecture.problems(recipe, folder)
        fact, broken = find_base.scan(folder)
        result.facts.append(fact)
        result.problems += problems + broken
        needs = estimate(recipe, folder, workspace.work_folder())
        result.facts += needs.lines()
        result.problems += needs.problems()
        return find_base.prepare(recipe, folder)
    except PrecisError as error:
        result.problems.append(str(error))
        return None


def _registry(
    recipe: Recipe, base: PreparedBase | None, report: Mapping[str, Any], result: Checked
) -> bool:
    """Whether there is a champion."""
    try:
        client = connection.connect()
        champion = find_champion(client, recipe.name)
        require_same_inputs(champion, recipe)
        require_readable_rows(champion, forms_of(report))
        if base:
            require_comparable(champion, base.path, recipe)
    except PrecisError as error:
        result.problems.append(str(error))
        return False
    opponent = f"champion v{champion.number}" if champion else "no champion yet: the untuned base"
    result.facts.append(f"registry: {connection.shown_uri()} answers; to beat: {opponent}")
    return champion is not None
