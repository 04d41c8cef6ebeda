"""What a retrain run came to, in a sentence and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from prefect.context import FlowRunContext

from tasks.contracts.metrics import LOSS, change, direction
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import Decision, StepCost, VersionRef
from tasks.contracts.truncation import Cut, line
from tasks.gate.task import headline
from tasks.tracking import artifacts, connection, mlflow_run


@dataclass(frozen=True)
class Outcome:
    """One run's decision and what became of it."""

    name: str
    decision: Decision
    version: int | None
    headline: str
    skipped: tuple[str, ...]
    mlflow_run_id: str
    prefect_flow_run_id: str
    report: str = ""  # runs:/ URI
    cuts: tuple[Cut, ...] = ()  # what did not fit
    costs: tuple[StepCost, ...] = ()

    @classmethod
    def of(
        cls, run: mlflow_run.Run, recipe: Recipe, decision: Decision, version: VersionRef | None
    ) -> Outcome:
        """The outcome of the flow run under way."""
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
        """For a terminal: the verdict, the numbers, the reasons, where to look next."""
        # Of a loss a gain is a fall: the change of each number itself, next to it, is read rightly.
        moved = "change" if LOSS in self.decision.metrics else "gain"
        rows = [f"{'':10}{'base':>9}{'lead-3':>9}{'champion':>9}{'challenger':>11}   {moved}"]
        for name, found in self.decision.metrics.items():
            cells = "".join(_cell(value) for value in (found.base, found.lead3, found.champion))
            difference, low, high = change(name, found.gain, found.low, found.high)
            rows.append(
                f"{name:10}{cells}{found.challenger:>11.4f}   "
                f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]{direction(name)}"
            )
        sure = f"{1 - self.decision.alpha:.3%}".rstrip("%").rstrip("0").rstrip(".")
        rows.append(f"in brackets: one-sided bounds, the deciding metric's at {sure}%")
        said = [f"- {text}" for text in (*self.decision.reasons, *self.decision.notes)]
        skipped = [f"unchanged, not done again: {', '.join(self.skipped)}"] if self.skipped else []
        cut = [f"did not fit: {line(self.cuts)}"] if line(self.cuts) else []
        return "\n".join([self.headline, *rows, *said, *cut, *skipped, *self._next()])

    def _next(self) -> list[str]:
        """Where to look now."""
        embedded = connection.tracking_uri().startswith(connection.SQLITE)
        where = artifacts.fetch(self.report) if self.report and embedded else self.report
        lines = [f"report:   {where}", f"history:  precis history {self.name}"]
        if embedded:
            lines.append(f"MLflow:   mlflow ui --backend-store-uri {connection.shown_uri()}")
        if self.version:
            served = f"mlflow models serve -m models:/{self.name}@champion --env-manager local"
            lines.append(f"serve it: MLFLOW_TRACKING_URI={connection.shown_uri()} {served}")
        return lines

    def with_report(
        self, uri: str, cuts: Sequence[Cut] = (), costs: Sequence[StepCost] = ()
    ) -> Outcome:
        """The same, with the report's URI, what did not fit, and what each step cost."""
        return replace(self, report=uri, cuts=tuple(cuts), costs=tuple(costs))

    def as_json(self) -> str:
        """The `--json` object; docs/cli.md lists its keys."""
        found = self.decision
        values: dict[str, Any] = {
            "verdict": found.verdict,
            "name": self.name,
            "version": self.version,
            "champion_version": found.opponent_version,
            "skipped": self.skipped,
            "metrics": {name: asdict(result) for name, result in found.metrics.items()},
            "reasons": found.reasons,
            "notes": found.notes,
            "looks": found.looks,
            "cuts": [asdict(cut) for cut in self.cuts],
            "costs": [_cost_as_json(cost) for cost in self.costs],
            "mlflow_run_id": self.mlflow_run_id,
            "prefect_flow_run_id": self.prefect_flow_run_id,
            "model_digest": found.challenger_digest,
            "evaluation_digest": found.evaluation_digest,
            "report": self.report,
        }
        return json.dumps(values, indent=2)


def _cost_as_json(cost: StepCost) -> dict[str, Any]:
    return {
        "step": cost.step,
        "estimated": asdict(cost.estimated),
        "measured": asdict(cost.measured),
    }


def _cell(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:>9.4f}"
