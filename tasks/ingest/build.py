"""The pipeline: read, map, measure, split, drop duplicates and overlap, report."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks.contracts.recipe import Data
from tasks.contracts.records import Row
from tasks.ingest.lengths import Meter
from tasks.ingest.opened_sources import Input, open_inputs
from tasks.ingest.overlap import OverlapIndex
from tasks.ingest.report import Overlap, full_report
from tasks.ingest.split_writer import Side, Tally, collect, in_evaluation, measured, row_of

TRAIN, EVALUATION, REJECTS = "train.jsonl", "evaluation.jsonl", "rejects.jsonl"
OVERLAP_EXAMPLES = 5
Inputs = dict[str, Input]
Tallies = dict[str, Tally]


@dataclass
class Built:
    """What came of the input: problems that forbid its use, or else a report."""

    problems: list[str]
    counts: dict[str, int] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


def build(data: Data, meter: Meter | None, folder: Path, scratch: Path) -> Built:
    """Write rows and rejects to `folder`; downloads go to `scratch`.

    With problems only the rejects are left there. Without a meter nothing is measured in tokens.
    """
    index = OverlapIndex(data.near_duplicate_jaccard)
    inputs, problems = open_inputs(data, scratch)
    if problems:
        return Built(problems)
    with ExitStack() as stack:
        train = stack.enter_context(Side(folder / "train.partial", data.train_rows))
        evaluation = stack.enter_context(Side(folder / "evaluation.partial", data.evaluation_rows))
        tallies = _collect(data, inputs, meter, train, evaluation, folder / REJECTS)
        train.close()
        evaluation.close()
        problems = _problems(data, inputs, tallies, train, evaluation)
        overlap = _drop_overlap(index, evaluation.path, train.path, folder / TRAIN)
        if not problems and not overlap.kept.any():
            problems.append(
                f"every training row ({train.rows}) is, or nearly is, an evaluation document; "
                "name other data.train or data.evaluation"
            )
        counts = _counts(tallies, train, evaluation, overlap)
        if problems:
            (folder / TRAIN).unlink()
            return Built(problems, counts)
        evaluation.path.replace(folder / EVALUATION)
    settings = meter.settings if meter else None
    reports = full_report(data, inputs, tallies, train, evaluation, overlap, settings)
    return Built([], counts, reports)


def _collect(
    data: Data, inputs: Inputs, meter: Meter | None, train: Side, evaluation: Side, rejects: Path
) -> Tallies:
    def side_of(source: str) -> Side:
        return evaluation if in_evaluation(source, data.evaluation_share) else train

    with rejects.open("wb") as file:
        if len(inputs) == 1:
            items = measured(inputs["data.train"], meter)
            return {"data.train": collect(items, side_of, (train, evaluation), file.write)}
        tallies = {}
        for key, side in (("data.train", train), ("data.evaluation", evaluation)):
            items = measured(inputs[key], meter)
            tallies[key] = collect(items, partial(_always, side), (side,), file.write)
        return tallies


def _always(side: Side, source: str) -> Side:
    return side


def _problems(
    data: Data, inputs: Inputs, tallies: Tallies, train: Side, evaluation: Side
) -> list[str]:
    problems = []
    for key, tally in tallies.items():
        spec = inputs[key].gathered.spec
        if tally.rejected / tally.read > data.max_rejected_share:
            problems += too_many_rejects(data, key, spec, tally)
        elif tally.rejected == tally.read:
            problems.append(f"{key}: {spec} holds no usable row; mend it, or name another")
    if len(tallies) == 1 and not problems:
        share = f"data.evaluation_share is {data.evaluation_share}"
        for side, other, turn in ((evaluation, train, "raise"), (train, evaluation, "lower")):
            if not side.rows:
                problems.append(
                    f"{spec}: all {other.rows} rows fell to the other side of the split, none to "
                    f"{side.path.stem} ({share}); {turn} it, add rows, or name data.evaluation"
                )
    return problems


def too_many_rejects(data: Data, key: str, spec: str, tally: Tally) -> list[str]:
    """The problem with an input of which too many rows cannot be used, and the first of them."""
    problems = [
        f"{key}: {tally.rejected} of {tally.read} rows of {spec} cannot be used "
        f"({tally.rejected / tally.read:.1%}; data.max_rejected_share allows "
        f"{data.max_rejected_share:.1%}); mend them, or allow more"
    ]
    problems += [str(reject) for reject in tally.first_rejects]
    more = tally.rejected - len(tally.first_rejects)
    return [*problems, f"... and {more} more rows of {spec}"] if more else problems


def canonical(path: Path) -> Iterator[tuple[bytes, Row]]:
    """Canonical rows of a file, one at a time, each with its line."""
    with path.open("rb") as lines:
        for line in lines:
            yield line, row_of(line)


def _drop_overlap(index: OverlapIndex, evaluation: Path, train: Path, kept_rows: Path) -> Overlap:
    """Copy the training rows whose document is no evaluation document, nor nearly one."""
    for _, row in canonical(evaluation):
        index.add(row.source, row.id, row.document)
    overlap = Overlap(evaluation_documents=len(index))
    kept = bytearray()
    documents = array("Q")  # numbers, not texts: there may be millions
    with kept_rows.open("wb") as out:
        for line, row in canonical(train):
            dropped = _overlap_of(index, row, overlap)
            kept.append(not dropped)
            if not dropped:
                documents.append(int(row.source, 16))
                out.write(line)
    overlap.kept = np.frombuffer(kept, dtype=bool)
    overlap.train_documents = len(np.unique(np.array(documents, dtype=np.uint64)))
    return overlap


def _overlap_of(index: OverlapIndex, row: Row, overlap: Overlap) -> bool:
    same = index.exact(row.source)
    # Which one it is like is shown of the first few alone.
    shown = len(overlap.examples) < OVERLAP_EXAMPLES
    near = None if same else index.near(row.document, any_will_do=not shown)
    if not same and not near:
        return False
    overlap.exact += bool(same)
    overlap.near += bool(near)
    if shown:
        found = {"evaluation": same, "jaccard": 1.0}
        if near:
            found = {"evaluation": near.id, "jaccard": round(near.jaccard, 4)}
        overlap.examples.append({"train": row.id, **found, "exact": bool(same)})
    return True


def _counts(tallies: Tallies, train: Side, evaluation: Side, overlap: Overlap) -> dict[str, int]:
    return {
        "train_rows": int(overlap.kept.sum()),
        "evaluation_rows": evaluation.rows,
        "rejected": sum(tally.rejected for tally in tallies.values()),
        "duplicates": train.duplicates + evaluation.duplicates,
        "overlap": overlap.exact + overlap.near,
    }
