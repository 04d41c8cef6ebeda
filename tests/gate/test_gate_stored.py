from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gate.gate_tables import record, two_models

from tasks.contracts.digest import of_file
from tasks.contracts.errors import EvaluationError
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Decision, to_json
from tasks.gate.decide import decide
from tasks.gate.recompute import GateInputs, main, recompute
from tasks.tracking.predictions_table import write_table


def _stored(folder: Path, seed: int, kind: str = "champion") -> Decision:
    """A gate artifact as the gate task writes it: the champion's with baselines, the base's without."""
    ours, theirs = two_models(seed, gain=0.011)
    inputs = GateInputs(
        gate=Gate(min_delta=0.001),
        opponent_kind="base" if kind == "base" else "champion",
        opponent_version=None if kind == "base" else 4,
        looks=3,
        scores={"challenger": record(ours, "a"), "opponent": record(theirs, "b")},
    )
    shown = None if kind == "base" else theirs
    decision = decide(
        ours,
        theirs,
        inputs.gate,
        opponent_kind=inputs.opponent_kind,
        opponent_version=inputs.opponent_version,
        challenger_scores=inputs.scores["challenger"],
        opponent_scores=inputs.scores["opponent"],
        base=shown,
        lead3=shown,
        looks=inputs.looks,
    )
    tables = {"challenger": ours, "opponent": theirs, "base": shown, "lead3": shown}
    for name, rows in tables.items():
        if rows is not None:
            write_table(folder / f"{name}.json", rows)
            if name in inputs.scores:
                digest = of_file(folder / f"{name}.json")
                inputs.scores[name] = replace(inputs.scores[name], table_digest=digest)
    (folder / "gate_inputs.json").write_text(to_json(inputs))
    (folder / "decision.json").write_text(to_json(decision))
    return decision


@pytest.mark.parametrize("kind", ["champion", "base"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_stored_decision_is_recomputed_exactly(tmp_path: Path, seed: int, kind: str) -> None:
    """The decision recomputed from stored scores equals the stored decision, to the last bit."""
    decision = _stored(tmp_path, seed, kind)
    assert recompute(tmp_path) == decision
    assert main([str(tmp_path)]) == 0


def test_a_doctored_decision_is_found_out(tmp_path: Path) -> None:
    """A stored verdict that its scores do not give is seen by recomputing."""
    _stored(tmp_path, 1)
    path = tmp_path / "decision.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"verdict": "PROMOTE", "rows": told["rows"] + 1}))
    assert main([str(tmp_path)]) == 1
    assert main([]) == 2


def test_a_doctored_table_is_found_out(tmp_path: Path) -> None:
    """A stored table that is not the one scored is refused."""
    _stored(tmp_path, 1)
    write_table(tmp_path / "challenger.json", two_models(1, gain=0.2)[0])
    with pytest.raises(EvaluationError, match="changed after it was scored"):
        recompute(tmp_path)
