"""Prefect task: the run's page, as a Prefect artifact and as HTML in MLflow; and the model's.

Over 250 lines: what flows may use of this step is listed here.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, replace
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.contracts import digest, truncation
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import (
    AdapterRef,
    DatasetRef,
    ModelRef,
    Prediction,
    ShownDecision,
    StepCost,
    VersionRef,
)
from tasks.contracts.truncation import Cut
from tasks.costs import step_costs
from tasks.orchestration.task_options import STEP
from tasks.processes import device, workspace
from tasks.report.blind_pairs import (
    MAX_DOCUMENT_CHARACTERS,
    Blind,
    choose,
    compare,
    render_pairs,
)
from tasks.report.data import ReportData
from tasks.report.markdown import render_markdown
from tasks.report.model_page import ModelPage, VersionRow
from tasks.report.model_page import render as render_model_page
from tasks.report.model_page_markdown import render_markdown as model_page_markdown
from tasks.report.page import render_html
from tasks.report.plots import plots
from tasks.tracking import artifacts, mlflow_run, page_run
from tasks.tracking.predictions_table import read_table

__all__ = [
    "ModelPage",
    "StoredReport",
    "VersionRow",
    "keep_page",
    "page_key",
    "render_model_page",
    "report",
]

CURVE = ("loss", "learning_rate")
COST_METRICS = ("seconds", "seconds_per_step", "tokens_per_second", "peak_memory_gib")
EVALUATED, OPEN = "evaluation documents", "open evaluation documents"  # what a truncation is of
PAIRS, PAIRS_KEY = "approval", f"{mlflow_run.SEALED}/approval"  # artifact folders, apart on purpose
ALL_CHARACTERS = 10_000_000
KEY_ABOUT = (
    "for each pair, in the order of rows, the side of the challenger; read it after the answer"
)


@dataclass(frozen=True)
class StoredReport:
    """Where the report is, and what of it the run's outcome shows as well."""

    uri: str  # runs:/ URI of the HTML page
    cuts: tuple[Cut, ...]  # texts that did not fit: the challenger's and training's
    costs: tuple[StepCost, ...]


@task(name="report", **STEP)
def report(
    recipe: Recipe,
    decision: ShownDecision,
    version: VersionRef | None,
    headline: str,
    dataset: DatasetRef,
    adapter: AdapterRef,
    model: ModelRef,
) -> StoredReport:
    """Render the report, and store it in MLflow and as a Prefect artifact."""
    run = mlflow_run.current()
    challenger, opponent = _shown_tables(run)
    recorded = run.client.get_run(run.id).data
    steps = step_costs.compare(recorded.tags, recorded.metrics)
    if decision.opponent != "champion":
        steps = [step for step in steps if step.step != step_costs.TITLES["champion"]]
    data_report = _data_report(dataset)
    evaluated = EVALUATED if decision.feedback == "open" else OPEN
    of_challenger = truncation.of_predictions(evaluated, challenger)
    of_opponent = truncation.of_predictions(f"{evaluated}, {decision.opponent}", opponent)
    of_training = truncation.of_training(data_report, adapter.metrics)
    named = [replace(cut, what=f"{evaluated}, challenger") for cut in of_challenger]
    data = ReportData(
        name=recipe.name,
        version=version.version if version else None,
        headline=headline,
        metric=recipe.gate.metric,
        decision=decision,
        challenger=challenger,
        opponent=opponent,
        training_curve=_curve(run, adapter),
        training_metrics=adapter.metrics,
        data_report=data_report,
        cuts=[*named, *of_opponent, *of_training],
        cost=_cost(adapter),
        steps=steps,
        links=_links(run, recorded.tags),
        digests=_digests(run, dataset, adapter, model, decision),
    )
    uri = _store(run, data)
    get_run_logger().info(f"report: {uri}")
    return StoredReport(uri, (*of_challenger, *of_training), tuple(steps))


@task(name="blind pairs", **STEP)
def blind_pairs(name: str, decision: ShownDecision) -> tuple[int, str]:
    """Draw blind pairs of the rows that may be shown; how many, and the `runs:/` URI of their page.

    The key says which side is the challenger's. It is stored apart from the page, and is drawn from no
    seed that a reader of the run knows.
    """
    run = mlflow_run.current()
    challenger, opponent = _shown_tables(run)
    seed = secrets.randbits(63)
    blind = choose(challenger, opponent, seed)
    folder = workspace.work_folder() / "approval" / run.id
    folder.mkdir(parents=True, exist_ok=True)
    ids = [ours.id for ours, _ in blind.pairs]
    key = {"about": KEY_ABOUT, "seed": seed, "rows": ids, "challenger_is": blind.key}
    (folder / "key.json").write_text(json.dumps(key))
    run.log_file(folder / "key.json", PAIRS_KEY)
    return len(blind.pairs), _store_pairs(run, blind, name, decision, "")


@task(name="blind pairs named", **STEP)
def name_blind_pairs(name: str, decision: ShownDecision) -> None:
    """Name the sides on their page, once the answer is stored."""
    run, key = mlflow_run.current(), _key()
    ours, theirs = ({row.id: row for row in table} for table in _shown_tables(run))
    pairs = tuple((ours[one], theirs[one]) for one in key["rows"])
    blind = Blind(pairs, key["challenger_is"], 0, len(ours))
    answer = decision.approval.sentence() if decision.approval else "none"
    _store_pairs(run, blind, name, decision, f"The answer: {answer}.")


def preferred_in_pairs(preferred: str) -> tuple[int, int, int]:
    """In how many blind pairs the challenger was preferred, the other model, and neither (compare)."""
    return compare(_key()["challenger_is"], preferred)


def _key() -> dict[str, Any]:
    uri = f"runs:/{mlflow_run.current().id}/{PAIRS_KEY}/key.json"
    found: dict[str, Any] = json.loads(artifacts.fetch(uri).read_text())
    return found


def _shown_tables(run: mlflow_run.Run) -> tuple[list[Prediction], list[Prediction]]:
    """The challenger's and the opponent's rows that may be shown."""
    gate = artifacts.fetch(f"runs:/{run.id}/gate")
    return read_table(gate / "challenger.json"), read_table(gate / "opponent.json")


def _store_pairs(
    run: mlflow_run.Run, blind: Blind, name: str, decision: ShownDecision, solution: str
) -> str:
    opponent = "champion" if decision.opponent == "champion" else "untuned base"
    path = workspace.work_folder() / "approval" / run.id / "pairs.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_pairs(blind, name, opponent, ALL_CHARACTERS, solution), encoding="utf-8")
    page = render_pairs(blind, name, opponent, MAX_DOCUMENT_CHARACTERS, solution)
    create_markdown_artifact(page, key="blind-pairs", description=f"{len(blind.pairs)} pairs")
    return run.log_file(path, PAIRS)


def _store(run: mlflow_run.Run, data: ReportData) -> str:
    """Write both pages; the `runs:/` URI of the one in MLflow."""
    path = workspace.work_folder() / "runs" / run.id / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = plots(data)
    path.write_text(render_html(data, pictures), encoding="utf-8")
    markdown = render_markdown(data, pictures)
    create_markdown_artifact(markdown, key="report", description=data.headline)
    return run.log_file(path)


def _data_report(dataset: DatasetRef) -> dict[str, Any]:
    path = artifacts.fetch(dataset.uri) / "report.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _curve(run: mlflow_run.Run, adapter: AdapterRef) -> list[dict[str, float]]:
    """Loss by step, from the run that trained the adapter (an earlier one, if training was skipped)."""
    trained_by = adapter.uri.removeprefix("runs:/").split("/")[0]
    points: dict[int, dict[str, float]] = {}
    for name in CURVE:
        for entry in run.client.get_metric_history(trained_by, name):
            points.setdefault(entry.step, {"step": float(entry.step)})[name] = entry.value
    return [points[step] for step in sorted(points)]


def _cost(adapter: AdapterRef) -> dict[str, float | str]:
    cost: dict[str, float | str] = {
        f"training {name}": adapter.metrics[name]
        for name in COST_METRICS
        if name in adapter.metrics
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
    decision: ShownDecision,
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


def keep_page(client: Any, run: page_run.PageRun, page: ModelPage, content: str) -> str:
    """Store a model's page in MLflow and as a Prefect artifact of the flow run; returns its address.

    `content`: the digest of what it tells, by which the next one knows whether it changed.
    """
    path = workspace.work_folder() / "pages" / page.name / "page.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_model_page(page), encoding="utf-8")
    address = page_run.store(client, run, path, content)
    text = model_page_markdown(page, address)
    served = f"v{page.champion} is champion" if page.champion else "no champion"
    about = (
        f"{page.name}: {served}, of all versions {len(page.versions)}, refused {len(page.refusals)}"
    )
    create_markdown_artifact(text, key=page_key(page.name), description=about)
    return address


def page_key(name: str) -> str:
    """The key of a model's page among Prefect's artifacts, where only a-z, 0-9 and dashes may stand."""
    plain = re.sub("[^a-z0-9]+", "-", name.lower())
    return (
        f"page-{name}" if plain == name else f"page-{plain.strip('-')}-{digest.of_value(name)[:8]}"
    )
