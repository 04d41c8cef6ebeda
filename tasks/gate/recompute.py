"""A decision kept with everything it was made of, so that anyone can make it again.

    python -m tasks.gate.recompute FOLDER

FOLDER holds `decision.json`, `gate_inputs.json` and the predictions tables `challenger.json`,
`opponent.json` and, where there were any, `base.json` and `lead3.json`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.gate.decide import decide
from tasks.gate.measure import Table
from tasks.recipe import Gate
from tasks.records import Decision, Scores, from_json, to_json
from tasks.table import read_table, write_table


@dataclass(frozen=True)
class GateInputs:
    """What a decision depends on besides the tables."""

    gate: Gate
    opponent_kind: Literal["champion", "base"]
    opponent_version: int | None
    looks: int
    challenger_scores: Scores
    opponent_scores: Scores
    schema_version: int = 1


def store(
    folder: Path,
    decision: Decision,
    inputs: GateInputs,
    challenger: Table,
    opponent: Table,
    base: Table | None,
    lead3: Table | None,
) -> None:
    """Write all that `recompute` reads, and the decision itself."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"challenger": challenger, "opponent": opponent, "base": base, "lead3": lead3}
    for name, rows in tables.items():
        if rows is not None:
            write_table(folder / f"{name}.json", rows)
    (folder / "gate_inputs.json").write_text(to_json(inputs), encoding="utf-8")
    (folder / "decision.json").write_text(to_json(decision), encoding="utf-8")


def recompute(folder: Path) -> Decision:
    """The decision made again from the stored tables and settings."""
    inputs = from_json(GateInputs, (folder / "gate_inputs.json").read_bytes())
    base, lead3 = (
        read_table(path) if path.exists() else None
        for path in (folder / "base.json", folder / "lead3.json")
    )
    return decide(
        read_table(folder / "challenger.json"),
        read_table(folder / "opponent.json"),
        inputs.gate,
        opponent_kind=inputs.opponent_kind,
        opponent_version=inputs.opponent_version,
        challenger_scores=inputs.challenger_scores,
        opponent_scores=inputs.opponent_scores,
        base=base,
        lead3=lead3,
        looks=inputs.looks,
    )


def main(arguments: list[str]) -> int:
    """Recompute and compare; exit status 0 if equal, 1 if not, 2 for bad usage."""
    if len(arguments) != 1:
        print("usage: python -m tasks.gate.recompute FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    stored = from_json(Decision, (folder / "decision.json").read_bytes())
    again = recompute(folder)
    print(f"stored {stored.verdict}, recomputed {again.verdict}: ", end="")
    print("equal to the last digit" if stored == again else "they differ")
    return 0 if stored == again else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
