"""Make a stored decision again from all that it was made of, and compare.

    python -m tasks.gate.recompute FOLDER

Every retrain stores such a folder: the artifact `sealed/gate` of its MLflow run, or `gate` under
gate.feedback: open.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from tasks.contracts import digest, formatting
from tasks.contracts.errors import EvaluationError, PrecisError
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Decision, OpenPart, Scores, from_json
from tasks.contracts.slice_labels import LABELS, Labels, read_labels
from tasks.gate.decide import SCHEMA
from tasks.gate.earlier_looks import EarlierLook
from tasks.gate.measure import Table
from tasks.gate.parts import Setting, Split, decide_by_parts
from tasks.gate.sharper_rules import ABOUT, as_before, without_notes
from tasks.tracking.predictions_table import read_table

T = TypeVar("T")
DECISION, INPUTS, EARLIER = "decision.json", "gate_inputs.json", "earlier_looks.json"
TABLES = ("challenger", "opponent", "base", "lead3")
GARBAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)
REQUIRED = (DECISION, INPUTS, "challenger.json", "opponent.json")
HELP = """\
FOLDER is the artifact `sealed/gate` of a retrain's MLflow run; under gate.feedback: open, and of
runs before it, `gate`. On the embedded store that is mlruns/artifacts/NAME/RUN/artifacts/sealed/gate; from
a server, fetch it with `mlflow artifacts download -u runs:/RUN/sealed/gate`. It holds decision.json,
gate_inputs.json, the predictions tables challenger.json, opponent.json, base.json and lead3.json, and
earlier_looks.json, which has what was used of earlier challengers' scores; and labels.json, where
gate.slices needs labels of the rows.

No number of the deciding rows is printed without --show-deciding. A person who reads them and
goes on choosing settings has used the evaluation set up: take fresh rows then.

A decision of schema 3 may have been made before the rules of invented numbers and names were made
sharper (2026-11-29). Where it differs in that guardrail alone, it is printed so, and all else is compared.

Exit status: 0 when the recomputed decision equals the stored one, that guardrail aside, 1 when it
differs or FOLDER cannot be read, 2 for wrong usage."""


@dataclass(frozen=True)
class GateInputs:
    """What a decision depends on besides the tables: the content of `gate_inputs.json`."""

    gate: Gate
    opponent_kind: Literal["champion", "base"]
    opponent_version: int | None
    looks: int
    scores: dict[str, Scores]  # challenger, opponent; others may be there
    earlier_digest: str = ""  # of the file EARLIER; empty where no earlier look was used
    split: Split = "none"  # of decisions before there were parts
    labels_digest: str = ""  # of the file LABELS; empty where gate.slices needs none


@dataclass(frozen=True)
class Recomputed:
    """A decision made again, and all that it was made of."""

    decision: Decision
    open_part: OpenPart | None
    inputs: GateInputs
    tables: dict[str, Table | None]
    remark: str = ""  # what of the stored decision cannot be held to the last bit


def recompute(folder: Path) -> Decision:
    """The decision made again; see `recompute_all`."""
    return recompute_all(folder).decision


def recompute_all(folder: Path) -> Recomputed:
    """The decision made again from the stored tables and settings, by the rules that made it.

    Raises what `decide` raises, and EvaluationError for a folder that is not a gate's, a table that is not
    the one that was scored, and for what no gate has stored.
    """
    _check_complete(folder)
    inputs = _read(GateInputs, folder / INPUTS)
    stored = _read(Decision, folder / DECISION)
    schema = stored.schema_version
    if schema > SCHEMA:
        raise EvaluationError(
            f"{folder / DECISION} is of schema {schema}, made by a later version of precis than this, "
            f"which knows {SCHEMA}; recompute it there"
        )
    tables = {name: _table(folder / f"{name}.json", inputs.scores.get(name)) for name in TABLES}
    setting = Setting(
        inputs.gate,
        inputs.split,
        inputs.opponent_kind,
        inputs.opponent_version,
        inputs.looks,
        tuple(_earlier(folder / EARLIER, inputs.earlier_digest)),
        labels_in(folder, inputs.labels_digest),
        schema,
    )
    try:
        decision, open_part = decide_by_parts(tables, inputs.scores, setting)
        before = as_before(
            stored,
            decision,
            lambda it: decide_by_parts(tables, inputs.scores, replace(setting, recorded=it))[0],
        )
    except GARBAGE as error:  # digests that were edited too, or are of before there were any
        raise EvaluationError(
            f"the scores and settings in {folder} are not what a gate has stored: no decision can be made "
            f"of them ({type(error).__name__}: {error}); fetch the folder again"
        ) from error
    if before:
        return Recomputed(before, open_part, inputs, tables, ABOUT)
    return Recomputed(decision, open_part, inputs, tables)


def _check_complete(folder: Path) -> None:
    if not folder.is_dir():
        raise EvaluationError(
            f"{folder} is not a folder; name the artifact folder `gate` or `sealed/gate` of a retrain's "
            "MLflow run"
        )
    if missing := [name for name in REQUIRED if not (folder / name).is_file()]:
        raise EvaluationError(
            f"{folder} has no {', no '.join(missing)}, so it is not the artifact folder `sealed/gate` (of "
            "sealed feedback) or `gate` of a retrain's MLflow run; name that folder (see --help)"
        )


def _read(kind: type[T], path: Path) -> T:
    try:
        return from_json(kind, path.read_bytes())
    except ValidationError as error:
        name = getattr(kind, "__name__", "a list")
        raise EvaluationError(
            f"{path} cannot be read as {name}; fetch it again: {error.errors()[0]['msg']}"
        ) from error


def _earlier(path: Path, stored_digest: str) -> list[EarlierLook]:
    if not stored_digest:
        return []
    if not path.is_file() or digest.of_file(path) != stored_digest:
        raise EvaluationError(f"{path} is gone or was changed after the decision; fetch it again")
    return _read(list[EarlierLook], path)


def labels_in(folder: Path, stored_digest: str) -> Labels:
    """The labels of evaluation rows in a folder; none without a digest.

    Raises EvaluationError unless the file is the one that was digested.
    """
    if not stored_digest:
        return {}
    path = folder / LABELS
    if not path.is_file() or digest.of_file(path) != stored_digest:
        raise EvaluationError(f"{path} is gone or was changed; fetch it again")
    try:
        return read_labels(path)
    except ValidationError as error:
        raise EvaluationError(f"{path} does not hold labels; fetch it again") from error


def _table(path: Path, scores: Scores | None) -> Table | None:
    if not path.exists():
        return None
    if scores and scores.table_digest and digest.of_file(path) != scores.table_digest:
        raise EvaluationError(f"{path} was changed after it was scored; fetch it again")
    try:
        return read_table(path)
    except GARBAGE as error:
        raise EvaluationError(f"{path} is not a predictions table; fetch it again") from error


def main(arguments: Sequence[str]) -> int:
    """Recompute and compare; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.gate.recompute",
        description="Recompute a stored decision of the gate, and compare.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a stored decision")
    parser.add_argument(
        "--show-deciding",
        action="store_true",
        help="print the numbers of the deciding rows: it uses up the evaluation set",
    )
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    try:
        _check_complete(folder)
        stored = _read(Decision, folder / DECISION)
        made = recompute_all(folder)
    except (PrecisError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    equal = without_notes(stored) == without_notes(made.decision)
    print(f"stored {stored.verdict}, recomputed {made.decision.verdict}: ", end="")
    print(made.remark or ("equal to the last digit" if equal else "they differ"))
    if options.show_deciding:
        print("\n".join(_numbers(made.decision)))
    return 0 if equal else 1


def _numbers(decision: Decision) -> list[str]:
    """The deciding rows' numbers, after what reading them costs."""
    return [
        "who reads this and goes on choosing settings has used these evaluation rows up; take fresh ones",
        *(
            f"{name}: challenger {formatting.score(found.challenger)}, gain {formatting.gain(found.gain)} "
            f"[{formatting.gain(found.low)}, {formatting.gain(found.high)}]"
            for name, found in decision.metrics.items()
        ),
        *(
            f"{one.name}: {formatting.score(one.value)}, bound {one.bound}, "
            f"{'held' if one.held else 'broken'}"
            for one in decision.guardrails
        ),
        *(f"- {reason}" for reason in decision.reasons),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
