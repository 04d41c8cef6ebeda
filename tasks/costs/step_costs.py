"""The forecast as it is stored with the run, shown on a terminal, and compared with what was measured."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path

from tasks.contracts.formatting import duration
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import Cost, StepCost
from tasks.costs.forecast import Forecast, forecast_steps
from tasks.models.prepared_base import PreparedBase
from tasks.processes import resource_usage

TAG = "precis.forecast"  # of the MLflow run: {step: [seconds, GiB]}
STEPS = ("ingest", "train", "merge", "drift", "challenger", "base", "champion", "gate")
TITLES = {
    "drift": "drift check",
    "challenger": "evaluate challenger",
    "base": "evaluate base",
    "champion": "evaluate champion",
}


def forecast_tags(recipe: Recipe, base: PreparedBase, report: Path) -> dict[str, str]:
    """The forecast as a tag of the MLflow run; `report` is the path of ingest's data report.

    No tag when it cannot be made: a driver that does not say what GPU it has must not fail the run.
    """
    try:
        forecast = forecast_steps(recipe, base, json.loads(report.read_text()))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        logging.getLogger(__name__).warning("time and memory are not estimated: %s", error)
        return {}
    return {
        TAG: json.dumps({step: [cost.seconds, cost.memory_gib] for step, cost in forecast.items()})
    }


def compare(tags: dict[str, str], metrics: dict[str, float]) -> list[StepCost]:
    """Every step of a run as it was estimated and as it was measured, from its tags and metrics."""
    stored = json.loads(tags.get(TAG, "{}"))
    estimated = {step: Cost(*stored.get(step, ())) for step in STEPS}
    return [
        StepCost(TITLES.get(step, step), estimated[step], resource_usage.of_metrics(step, metrics))
        for step in STEPS
        if step in stored or resource_usage.of_metrics(step, metrics) != Cost()
    ]


def lines(forecast: Forecast, champion: bool) -> list[str]:
    """For a terminal: a line a step, and their sum. Without a `champion` none is evaluated."""
    steps = {step: cost for step, cost in forecast.items() if champion or step != "champion"}
    if not steps:
        return [
            "no time estimate: the throughput of this GPU is unknown (tasks/costs/hardware_speed.py "
            "lists those that are known)"
        ]
    step_lines = [
        f"{TITLES.get(step, step) + ':':22}{duration(cost.seconds):>12}"
        + (f"  {cost.memory_gib:.1f} GiB" if cost.memory_gib is not None else "")
        for step, cost in steps.items()
    ]
    total_seconds = sum(cost.seconds or 0.0 for cost in steps.values())
    return [
        "estimate of each step (it takes half to twice that), with this machine as busy as it is now:",
        *(f"  {line}" for line in step_lines),
        f"  {'all steps:':22}{duration(total_seconds):>12}",
    ]
