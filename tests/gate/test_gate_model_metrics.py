"""NLI and BERTScore in a decision: shown, a veto where the recipe says so, and recomputed without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gate.gate_tables import record, table
from pydantic import ValidationError

from tasks.contracts.digest import of_file
from tasks.contracts.errors import EvaluationError, SealBroken
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Decision, MetricModel, Prediction, Scores, from_json, to_json
from tasks.gate.decide import decide
from tasks.gate.look_key import judged_by
from tasks.gate.parts import Setting, decide_by_parts, record_of
from tasks.gate.recompute import GateInputs, recompute
from tasks.gate.shown import shown
from tasks.tracking.predictions_table import read_table, write_table

ROWS = 200
SHOWN = Gate(bootstrap_samples=1000, nli_model="gone", bertscore_model="gone", bertscore_layer=2)
VETO = SHOWN.model_copy(update={"max_nli_drop": 0.01, "max_bertscore_drop": 0.01})


def _tables(drop: float, of: str = "nli", noise: float = 0.02) -> list[list[Prediction]]:
    """A challenger that is better in ROUGE, and worse by `drop` in one of the two, and its opponent."""
    draw = np.random.default_rng(5)
    theirs = draw.uniform(0.3, 0.6, ROWS)
    told = {name: draw.uniform(0.4, 0.7, ROWS) for name in ("nli", "bertscore")}
    change = drop + noise * draw.standard_normal(ROWS)
    change += drop - change.mean()
    ours = {name: told[name] - (change if name == of else 0.001) for name in told}
    return [
        [
            replace(row, scores=row.scores | {name: float(v[i]) for name, v in more.items()})
            for i, row in enumerate(table(scores))
        ]
        for scores, more in ((theirs + draw.uniform(0.0, 0.04, ROWS), ours), (theirs, told))
    ]


def _record(rows: Sequence[Prediction], model: str, key: str = "k") -> Scores:
    models = {name: MetricModel("d" * 64, key) for name in ("nli", "bertscore")}
    return replace(record_of(rows, record(rows, model)), metric_models=models)


def _decided(
    tables: list[list[Prediction]], gate: Gate, keys: tuple[str, str] = ("k", "k")
) -> Decision:
    ours, theirs = tables
    return decide(
        ours,
        theirs,
        gate,
        opponent_kind="champion",
        opponent_version=2,
        challenger_scores=_record(ours, "new", keys[0]),
        opponent_scores=_record(theirs, "old", keys[1]),
        base=theirs,
        lead3=table(np.full(ROWS, 0.3)),
        looks=1,
    )


@pytest.mark.parametrize("of", ["nli", "bertscore"])
def test_without_a_largest_drop_they_are_shown_and_veto_nothing(of: str) -> None:
    """Means and bounds stand beside ROUGE's, lead-3 has none, and no guardrail bears their name."""
    decision = _decided(_tables(0.3, of), SHOWN)
    assert decision.verdict == "PROMOTE"
    found = decision.metrics[of]
    assert found.gain == pytest.approx(-0.3)
    assert found.low < found.gain < found.high
    assert found.champion == found.base == pytest.approx(found.challenger + 0.3)
    assert found.lead3 is None
    assert of not in {one.name for one in decision.guardrails}


@pytest.mark.parametrize("of", ["nli", "bertscore"])
@pytest.mark.parametrize(
    ("drop", "noise", "verdict"),
    [(0.03, 0.02, "REJECT"), (0.012, 0.05, "INCONCLUSIVE"), (0.009, 0.05, "PROMOTE")],
)
def test_a_measured_drop_vetoes_and_noise_is_inconclusive(
    of: str, drop: float, noise: float, verdict: str
) -> None:
    """By the rule of all guardrails."""
    decision = _decided(_tables(drop, of, noise), VETO)
    assert decision.verdict == verdict
    [guardrail] = [one for one in decision.guardrails if one.name == of]
    assert (guardrail.bound, guardrail.held) == (">= -0.01", verdict == "PROMOTE")
    if verdict != "PROMOTE":
        [why] = [reason for reason in decision.reasons if reason.startswith(of)]
        assert "over the margin of 0.01" in why
        assert ("noise could explain it" in why) == (verdict == "INCONCLUSIVE")


def test_what_was_decided_without_them_is_the_same_with_them() -> None:
    """Their columns change no bound of another metric."""
    tables = _tables(0.0)
    alone = _decided(tables, Gate(bootstrap_samples=1000))
    both = _decided(tables, SHOWN)
    assert {n: m for n, m in both.metrics.items() if n in alone.metrics} == alone.metrics
    assert both.guardrails == alone.guardrails


@pytest.mark.parametrize("value", [None, 1.2, -0.1, float("nan")])
def test_a_row_without_a_number_stops_the_flow(value: float | None) -> None:
    """Missing, or none that the metric can have."""
    ours, theirs = _tables(0.0)
    scores = {name: v for name, v in theirs[7].scores.items() if name != "nli"}
    theirs[7] = replace(theirs[7], scores=scores | ({} if value is None else {"nli": value}))
    with pytest.raises(EvaluationError, match="nli"):
        _decided([ours, theirs], SHOWN)


def test_numbers_of_two_models_are_never_compared() -> None:
    """Another folder, layer, code or processor is another key."""
    with pytest.raises(SealBroken, match="nli of the challenger was computed with the model dddd"):
        _decided(_tables(0.0), SHOWN, ("k", "other"))


def test_deciding_rows_numbers_stay_sealed() -> None:
    """A veto by NLI says that a guardrail is broken, and neither which nor by how much."""
    ours, theirs = _tables(0.3)
    words = np.random.default_rng(1).choice([f"word{n}" for n in range(400)], (ROWS, 40))
    ours, theirs = (
        [replace(r, document=" ".join(w)) for r, w in zip(rows, words, strict=True)]
        for rows in (ours, theirs)
    )
    tables = {"challenger": ours, "opponent": theirs, "base": None, "lead3": None}
    scores = {"challenger": _record(ours, "new"), "opponent": _record(theirs, "old")}
    decision, opened = decide_by_parts(tables, scores, Setting(VETO, "hash", "champion", 2, 1))
    assert decision.verdict == "REJECT"
    assert opened is not None
    assert opened.metrics["nli"].gain < -0.2
    told = shown(decision, opened, VETO, ROWS)
    assert (told.metrics, told.guardrails) == ({}, ())
    public = to_json(replace(told, open_part=None))
    assert "nli" not in public
    assert "bertscore" not in public


def test_a_stored_decision_recomputes_without_the_model(tmp_path: Path) -> None:
    """Every row's number is in the tables; what computed them is in the inputs by digest."""
    ours, theirs = _tables(0.03)
    decision = _decided([ours, theirs], VETO)
    scores = {}
    for name, rows in (("challenger", ours), ("opponent", theirs), ("base", theirs)):
        write_table(tmp_path / f"{name}.json", rows)
        assert read_table(tmp_path / f"{name}.json") == rows
        kept = _record(rows, "new" if name == "challenger" else "old")
        scores[name] = replace(kept, table_digest=of_file(tmp_path / f"{name}.json"))
    write_table(tmp_path / "lead3.json", table(np.full(ROWS, 0.3)))
    inputs = GateInputs(VETO, "champion", 2, 1, scores)
    (tmp_path / "gate_inputs.json").write_text(to_json(inputs))
    (tmp_path / "decision.json").write_text(to_json(decision))
    assert recompute(tmp_path) == decision == from_json(Decision, to_json(decision))
    assert "d" * 64 in (tmp_path / "gate_inputs.json").read_text()


def test_a_veto_by_another_model_is_another_look() -> None:
    """By what is in the folder, not its name; a model that is only shown decides nothing."""
    ours, _ = _tables(0.0)
    own, other = _record(ours, "new"), _record(ours, "new")
    other = replace(other, metric_models={"nli": MetricModel("e" * 64, "k")})
    assert judged_by(Gate(nli_model="gone", bertscore_model="gone"), own) == "rougeL"
    moved = VETO.model_copy(update={"nli_model": "elsewhere"})
    assert judged_by(VETO, own) == judged_by(moved, own) != judged_by(VETO, other)


@pytest.mark.parametrize("name", ["max_nli_drop", "max_bertscore_drop", "bertscore_layer"])
def test_a_setting_of_no_model_is_refused(name: str) -> None:
    """A veto that would never be asked, and what to do."""
    with pytest.raises(ValidationError, match=f"{name} needs .*_model.*name one or remove {name}"):
        Gate.model_validate({name: 1})
