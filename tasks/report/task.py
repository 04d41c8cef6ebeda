"""Prefect task: the run's page, as a Prefect artifact and as HTML in MLflow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.contracts import truncation
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import AdapterRef, DatasetRef, Decision, ModelRef, StepCost, VersionRef
from tasks.costs import step_costs
from tasks.orchestration.task_options import STEP
from tasks.processes import device, workspace
from tasks.report.data import ReportData
from tasks.report.markdown import render_markdown
from tasks.report.page import render_html
from tasks.report.plots import plots
from tasks.tracking import artifacts, mlflow_run
from tasks.tracking.predictions_table import read_table

CURVE = ("loss", "learning_rate")


@task(name="report", **STEP)
def report(
    recipe: Recipe,
    decision: Decision,
    version: VersionRef | None,
    said: str,
    dataset: DatasetRef,
    adapter: AdapterRef,
    model: ModelRef,
) -> tuple[str, list[StepCost]]:
    """Render and store the report; returns its `runs:/` URI, and what each step cost."""
    run = mlflow_run.current()
    gate, known = _gate(run), run.client.get_run(run.id).data
    steps = step_costs.compare(known.tags, known.metrics)
    if decision.opponent != "champion":
        steps = [one for one in steps if one.step != step_costs.TITLES["champion"]]
    data = ReportData(
        name=recipe.name,
        version=version.version if version else None,
        headline=said,
        metric=recipe.gate.metric,
        decision=decision,
        challenger=read_table(gate / "challenger.json"),
        opponent=read_table(gate / "opponent.json"),
        training_curve=_curve(run, adapter),
        training_metrics=adapter.metrics,
        data_report=_data_report(dataset),
        cuts=cuts_of(dataset, adapter, decision.opponent),
        cost=_cost(adapter),
        steps=steps,
        links=_links(run, known.tags),
        digests=_digests(run, dataset, adapter, model, decision),
    )
    path = workspace.work_folder() / "runs" / run.id / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = plots(data)
    path.write_text(render_html(data, drawn), encoding="utf-8")
    create_markdown_artifact(render_markdown(data, drawn), key="report", description=said)
    uri = run.log_file(path)
    get_run_logger().info(f"report: {uri}")
    return uri, steps


def cuts_of(
    dataset: DatasetRef, adapter: AdapterRef, opponent: str | None = None
) -> list[truncation.Cut]:
    """What did not fit in the run under way: evaluation documents as the challenger met them (and
    the `opponent`, if asked for), training documents and completions.
    """
    gate, what = _gate(mlflow_run.current()), "evaluation documents"
    found = truncation.of_predictions(what, read_table(gate / "challenger.json"))
    if opponent:
        theirs = truncation.of_predictions(
            f"{what}, {opponent}", read_table(gate / "opponent.json")
        )
        found = [replace(one, what=f"{what}, challenger") for one in found] + theirs
    return found + truncation.of_training(_data_report(dataset), adapter.metrics)


def _gate(run: mlflow_run.Run) -> Path:
    return artifacts.fetch(f"runs:/{run.id}/gate")


def _data_report(dataset: DatasetRef) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifacts.fetch(dataset.uri) / "report.json").read_text())
    return found


def _curve(run: mlflow_run.Run, adapter: AdapterRef) -> list[dict[str, float]]:
    """Loss by step, from the run that trained the adapter (an earlier one, if training was skipped)."""
    trained_by = adapter.uri.removeprefix("runs:/").split("/")[0]
    points: dict[int, dict[str, float]] = {}
    for name in CURVE:
        for found in run.client.get_metric_history(trained_by, name):
            points.setdefault(found.step, {"step": float(found.step)})[name] = found.value
    return [points[step] for step in sorted(points)]


def _cost(adapter: AdapterRef) -> dict[str, float | str]:
    wanted = ("seconds", "seconds_per_step", "tokens_per_second", "peak_memory_gib")
    cost: dict[str, float | str] = {
        f"training {name}": adapter.metrics[name] for name in wanted if name in adapter.metrics
    }
    return {"device": device.compute(), **cost}


def _links(run: mlflow_run.Run, tags: dict[str, str]) -> dict[str, str]:
    links = {
        "MLflow run": mlflow_run.run_url(run),
        "Prefect flow run": tags.get("precis.prefect_url"),
    }
    return {title: link for title, link in links.items() if link}


def _digests(
    run: mlflow_run.Run,
    dataset: DatasetRef,
    adapter: AdapterRef,
    model: ModelRef,
    decision: Decision,
) -> dict[str, Any]:
    return {
        "MLflow run": run.id,
        "training rows": dataset.train_digest,
        "evaluation rows": dataset.evaluation_digest,
        "evaluation seal": decision.evaluation_digest,
        "base": model.base_digest,
        "adapter": adapter.digest,
        "challenger": decision.challenger_digest,
        decision.opponent: decision.opponent_digest,
    }
