from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from gate.gate_tables import judged, record, two_models

from tasks.gate.decide import decide
from tasks.gate.history import HistoryRecord, of_decision
from tasks.gate.recompute import GateInputs, main, recompute, store
from tasks.recipe import Gate
from tasks.records import Decision

NOON = datetime(2026, 5, 4, 12, 30, 15, tzinfo=UTC)


def _stored(folder: Path, seed: int, kind: str = "champion") -> Decision:
    ours, theirs = two_models(seed, gain=0.011)
    base, lead3 = (None, None) if kind == "base" else (theirs, two_models(seed + 1)[0])
    lead3 = [*theirs] if lead3 else None
    inputs = GateInputs(
        gate=Gate(min_delta=0.001),
        opponent_kind="base" if kind == "base" else "champion",
        opponent_version=None if kind == "base" else 4,
        looks=3,
        challenger_scores=record(ours, "a"),
        opponent_scores=record(theirs, "b"),
    )
    decision = decide(
        ours,
        theirs,
        inputs.gate,
        opponent_kind=inputs.opponent_kind,
        opponent_version=inputs.opponent_version,
        challenger_scores=inputs.challenger_scores,
        opponent_scores=inputs.opponent_scores,
        base=base,
        lead3=lead3,
        looks=inputs.looks,
    )
    store(folder, decision, inputs, ours, theirs, base, lead3)
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


def test_history_records_survive_json() -> None:
    """A record of the history read back is equal; one of a later schema is refused."""
    decision = judged(*two_models(1, gain=0.05))
    record = of_decision(decision, "dialogsum", "rougeL", 3, "run", NOON)
    assert HistoryRecord.of_json(record.json()) == record
    assert record.schema_version == 1
    later = json.dumps(json.loads(record.json()) | {"schema_version": 2})
    with pytest.raises(ValueError, match="update precis"):
        HistoryRecord.of_json(later)


def test_history_lines() -> None:
    """A promotion, a refusal and a rollback, a line each."""
    ours, theirs = two_models(1, gain=0.05)
    won = of_decision(judged(ours, theirs), "d", "rougeL", 3, "run", NOON)
    assert won.kind == "promotion"
    assert won.line().startswith("2026-05-04 12:30Z  promotion  v3    PROMOTED  rougeL +0.0")
    assert "against v2  rougeL gained" in won.line()
    lost = of_decision(judged(theirs, ours, kind="base"), "d", "rougeL", None, "run", NOON)
    assert lost.kind == "refusal"
    assert "refusal    -     REJECTED  rougeL -0.0" in lost.line()
    assert "against base  no gain" in lost.line()
    back = HistoryRecord(
        kind="rollback",
        time=won.time,
        name="d",
        verdict=None,
        reasons=("complaints about v3",),
        version=2,
        opponent_version=3,
        metric=None,
        gain=None,
        low=None,
        high=None,
        looks=0,
        evaluation_digest=None,
        model_digest=None,
        mlflow_run_id=None,
    )
    assert back.line() == "2026-05-04 12:30Z  rollback   v2    complaints about v3"
    assert HistoryRecord.of_json(back.json()) == back
