"""`precis run`, `evaluate` and `check`: what is done with a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import typer

from flows.cli.verbs.flow_runs import prefect_api, result_of
from flows.cli.verbs.options import Json, Overrides, RecipeFile, Show

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


def run(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """The retrain flow, here and now."""
    from flows.recipes import load

    loaded = load(recipe, overrides or ())
    with prefect_api():
        from flows.retrain import retrain

        state = cast("State[Any]", retrain(loaded, return_state=True))
    outcome = result_of(state)
    print(outcome.as_json() if as_json else outcome.as_text())


def evaluate(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Score the champion on evaluation.fresh: has it decayed?"""
    from flows.recipes import load

    loaded = load(recipe, overrides or ())
    with prefect_api():
        from flows.evaluate import evaluate_champion

        state = cast("State[Any]", evaluate_champion(loaded, return_state=True))
    evaluation = result_of(state)
    print(evaluation.as_json() if as_json else evaluation.as_text())


def check(recipe: RecipeFile, overrides: Overrides = None, show: Show = 0) -> None:
    """Everything that can be known before spending GPU time."""
    from flows.recipes import load

    loaded = load(recipe, overrides or ())
    # Only now: its imports take seconds, and what is no recipe is refused at once.
    from flows import check as checks

    report = checks.check(loaded, show)
    print(report.as_text())
    if report.problems:
        raise typer.Exit(1)
