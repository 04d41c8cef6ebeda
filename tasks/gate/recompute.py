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

from tasks.contracts import digest
from tasks.contracts.errors import EvaluationError
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Decision, Scores, from_json
from tasks.gate.decide import decide
from tasks.gate.measure import Table
from tasks.tracking.predictions_table import read_table

TABLES = ("challenger", "opponent", "base", "lead3")


@dataclass(frozen=True)
class GateInputs:
    """What a decision depends on besides the tables: the content of `gate_inputs.json`."""

    gate: Gate
    opponent_kind: Literal["champion", "base"]
    opponent_version: int | None
    looks: int
    scores: dict[str, Scores]  # challenger, opponent; others may be there


def recompute(folder: Path) -> Decision:
    """The decision made again from the stored tables and settings.

    Raises what `decide` raises, and EvaluationError for a table that is not the one scored.
    """
    inputs = from_json(GateInputs, (folder / "gate_inputs.json").read_bytes())
    tables = {name: _table(folder / f"{name}.json", inputs.scores.get(name)) for name in TABLES}
    return decide(
        tables["challenger"] or (),
        tables["opponent"] or (),
        inputs.gate,
        opponent_kind=inputs.opponent_kind,
        opponent_version=inputs.opponent_version,
        challenger_scores=inputs.scores["challenger"],
        opponent_scores=inputs.scores["opponent"],
        base=tables["base"],
        lead3=tables["lead3"],
        looks=inputs.looks,
    )


def _table(path: Path, scores: Scores | None) -> Table | None:
    if not path.exists():
        return None
    if scores and scores.table_digest and digest.of_file(path) != scores.table_digest:
        raise EvaluationError(f"{path} was changed after it was scored; fetch it anew")
    return read_table(path)


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
