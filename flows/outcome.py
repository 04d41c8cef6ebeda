"""The outcome of a retrain run, as text and as JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from prefect.context import FlowRunContext

from tasks.contracts.errors import RegistryError
from tasks.contracts.formatting import about_feedback, headline, open_part_notes, part_titles
from tasks.contracts.metrics import LOSS, change, direction
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import MetricResult, ShownDecision, StepCost, VersionRef
from tasks.contracts.truncation import Cut, line
from tasks.register.task import ALIAS
from tasks.report.task import StoredReport
from tasks.tracking import artifacts, connection, mlflow_run


@dataclass(frozen=True)
class Outcome:
    """A run's decision, the version it registered, and where to find the rest."""

    name: str
    decision: ShownDecision
    version: int | None
    headline: str
    skipped: tuple[str, ...]
    mlflow_run_id: str
    prefect_flow_run_id: str
    report: str = ""  # runs:/ URI
    cuts: tuple[Cut, ...] = ()  # texts that were truncated
    costs: tuple[StepCost, ...] = ()

    @classmethod
    def of(
        cls,
        run: mlflow_run.Run,
        recipe: Recipe,
        decision: ShownDecision,
        version: VersionRef | None,
    ) -> Outcome:
        """The outcome of the current flow run."""
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        number = version.version if version else None
        return cls(
            name=recipe.name,
            decision=decision,
            version=number,
            headline=headline(decision, recipe.name, number, recipe.gate.metric),
            skipped=tuple(run.skipped),
            mlflow_run_id=run.id,
            prefect_flow_run_id=str(context.flow_run.id),
        )

    def as_text(self) -> str:
        """For a terminal: the verdict, the numbers that may be shown, the reasons, where to look next."""
        decision = self.decision
        deciding, shown = part_titles(decision)
        lines = [self.headline]
        if not decision.withheld:
            lines += _table(decision.metrics, decision.alpha, deciding)
        if decision.open_part:
            lines += _table(decision.open_part.metrics, decision.open_part.alpha, shown)
        reasons = [*decision.reasons, *decision.notes, about_feedback(decision)]
        if decision.open_part:
            reasons += [f"open part: {text}" for text in open_part_notes(decision.open_part)]
        lines += [f"- {text}" for text in reasons if text]
        skipped = [f"unchanged, not done again: {', '.join(self.skipped)}"] if self.skipped else []
        cut = [f"did not fit: {line(self.cuts)}"] if line(self.cuts) else []
        return "\n".join([*lines, *cut, *skipped, *self._next()])

    def _next(self) -> list[str]:
        """Where to look next."""
        embedded = connection.tracking_uri().startswith(connection.SQLITE)
        page = artifacts.fetch(self.report) if self.report and embedded else self.report
        lines = [f"report:   {page}", f"history:  precis history {self.name}"]
        if embedded:
            lines.append(f"MLflow:   mlflow ui --backend-store-uri {connection.shown_uri()}")
        if self.version:
            command = f"mlflow models serve -m models:/{self.name}@{ALIAS} --env-manager local"
            lines.append(f"serve it: MLFLOW_TRACKING_URI={connection.shown_uri()} {command}")
        return lines

    def with_report(self, report: StoredReport) -> Outcome:
        """The same, with the report's URI, truncated texts, and the cost of each step."""
        return replace(self, report=report.uri, cuts=report.cuts, costs=report.costs)

    def as_json(self) -> str:
        """The `--json` object; docs/cli.md lists its keys."""
        decision = self.decision
        values: dict[str, Any] = {
            "verdict": decision.ending,
            "name": self.name,
            "version": self.version,
            "champion_version": decision.opponent_version,
            "skipped": self.skipped,
            "feedback": decision.feedback,
            "rows": {"deciding": decision.rows, "all": decision.evaluation_rows},
            "metrics": {name: asdict(result) for name, result in decision.metrics.items()},
            "open_part": asdict(decision.open_part) if decision.open_part else None,
            "reasons": decision.reasons,
            "notes": decision.notes,
            "looks": decision.looks,
            "approval": asdict(decision.approval) if decision.approval else None,
            "cuts": [asdict(cut) for cut in self.cuts],
            "costs": [_cost_as_json(cost) for cost in self.costs],
            "mlflow_run_id": self.mlflow_run_id,
            "prefect_flow_run_id": self.prefect_flow_run_id,
            "model_digest": decision.challenger_digest,
            "evaluation_digest": decision.evaluation_digest,
            "report": self.report,
        }
        return json.dumps(values, indent=2)


@contextlib.contextmanager
def promotion_stands(outcome: Outcome) -> Iterator[None]:
    """What fails in this block, after a promotion, says that the promotion stands. Raises RegistryError."""
    try:
        yield
    except Exception as error:
        if outcome.version is None:
            raise
        raise RegistryError(
            f"{outcome.headline}: that stands; what came after it failed: {error}"
        ) from error


def _cost_as_json(cost: StepCost) -> dict[str, Any]:
    return {
        "step": cost.step,
        "estimated": asdict(cost.estimated),
        "measured": asdict(cost.measured),
    }


def _table(metrics: Mapping[str, MetricResult], alpha: float, title: str) -> list[str]:
    """Means of a part of the evaluation set, and the gain with its bounds."""
    # A loss improves by falling: next to the numbers, the change of the number itself reads better.
    column = "change" if LOSS in metrics else "gain"
    rows = [f"{title}:"] if title else []
    rows.append(f"{'':10}{'base':>9}{'lead-3':>9}{'champion':>9}{'challenger':>11}   {column}")
    for name, result in metrics.items():
        cells = "".join(_cell(value) for value in (result.base, result.lead3, result.champion))
        difference, low, high = change(name, result.gain, result.low, result.high)
        rows.append(
            f"{name:10}{cells}{result.challenger:>11.4f}   "
            f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]{direction(name)}"
        )
    confidence = f"{1 - alpha:.3%}".rstrip("%").rstrip("0").rstrip(".")
    return [*rows, f"in brackets: one-sided bounds, the deciding metric's at {confidence}%"]


def _cell(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:>9.4f}"
