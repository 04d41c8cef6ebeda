"""Raw data to a folder of canonical rows, and the same as a check that leaves nothing behind.

The steps of `build`: open the sources, read and measure every row, split, drop duplicates and overlap,
report. Over 250 lines: one path through the input, of which no part is used elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.contracts import digest
from tasks.contracts.errors import DataError, PrecisError
from tasks.contracts.recipe import Data, Prompt
from tasks.contracts.records import DatasetRef
from tasks.contracts.similar_documents import DocumentIndex
from tasks.contracts.slice_labels import LABELS, write_labels
from tasks.ingest.drop_overlap import Overlap, drop_overlap
from tasks.ingest.evaluation_labels import EvaluationLabels
from tasks.ingest.lengths import Meter
from tasks.ingest.report import full_report
from tasks.ingest.seen_rows import ROWS, seen_rows
from tasks.ingest.sources import Input, open_inputs
from tasks.ingest.split_writer import SplitWriter, Tally, in_evaluation, measured, write_splits
from tasks.ingest.token_lengths import meter_for
from tasks.processes import workspace

if TYPE_CHECKING:
    from tasks.serving.summarizer import SummarizerSettings

TRAIN, EVALUATION, REJECTS = "train.jsonl", "evaluation.jsonl", "rejects.jsonl"
REPORT = "report.json"
OPEN_EVALUATION = "data.open_evaluation"
# Where both sets are named, a row's id begins with the name of its part; the gate reads it there.
PARTS = {"data.evaluation": "deciding/", OPEN_EVALUATION: "open/"}
Inputs = dict[str, Input]
Tallies = dict[str, Tally]


@dataclass
class Built:
    """The outcome of reading the input: problems that prevent its use, or else a report."""

    problems: list[str]
    counts: dict[str, int] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


def prepare(
    data: Data,
    prompt: Prompt,
    settings: SummarizerSettings,
    tokenizer_folder: Path,
    folder: Path,
    slices: Sequence[str] = (),
) -> DatasetRef:
    """Read the recipe's sources and write `folder`: canonical rows, rejects and the data report.

    `train.jsonl` and `evaluation.jsonl` hold a `Row` a line, `rejects.jsonl` every row set aside
    (file, line, problem, raw), `report.json` the data report, and where `slices` (gate.slices) need it
    `labels.json` the labels of the evaluation rows. The same input gives the same bytes.
    Texts are as they came, but for CRLF, which becomes LF.

    Raises DataError with all problems of the input at once (sources and columns first, then rows;
    the rejects file is there either way), RecipeError when the prompt template alone is too
    long, BaseModelError when there is no tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (TRAIN, EVALUATION, REJECTS, REPORT, LABELS):
        (folder / name).unlink(missing_ok=True)
    meter = meter_for(tokenizer_folder, settings, prompt)
    with workspace.temporary_folder("ingest") as scratch:
        built = build(data, prompt, meter, folder, scratch, slices=slices)
    if built.problems:
        if built.counts.get("rejected"):
            built.problems.append(f"every row set aside is in {folder / REJECTS}")
        raise DataError.of(built.problems)
    text = json.dumps(built.report, indent=2, ensure_ascii=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")
    return _reference(folder, built)


def look(
    data: Data,
    prompt: Prompt,
    settings: SummarizerSettings | None = None,
    tokenizer_folder: Path | None = None,
    shown: int = ROWS,
    with_evaluation: Callable[[Path], object] | None = None,
    slices: Sequence[str] = (),
) -> Built:
    """What would stop `prepare`, row counts once rows could be read, and the report; leaves no file.

    Counts are train_rows, evaluation_rows, rejected, duplicates and overlap. Reads everything.
    Without settings and tokenizer (a base that was not found) nothing is measured in tokens, and
    rows too long for `prompt.truncate: error` are not noticed. `with_evaluation` is called with the file of
    evaluation rows before it and `labels.json` beside it are removed, if there are no problems.
    """
    with workspace.temporary_folder("check") as scratch:
        try:
            meter = None
            if settings is not None and tokenizer_folder is not None:
                meter = meter_for(tokenizer_folder, settings, prompt)
            built = build(data, prompt, meter, scratch, scratch, shown, slices)
            if with_evaluation and not built.problems:
                with_evaluation(scratch / EVALUATION)
            return built
        except PrecisError as error:
            return Built(str(error).splitlines())


def problems(
    data: Data,
    prompt: Prompt,
    settings: SummarizerSettings | None = None,
    tokenizer_folder: Path | None = None,
) -> tuple[list[str], dict[str, int]]:
    """The problems and counts of `look`."""
    built = look(data, prompt, settings, tokenizer_folder)
    return built.problems, built.counts


def _reference(folder: Path, built: Built) -> DatasetRef:
    train, evaluation = digest.of_file(folder / TRAIN), digest.of_file(folder / EVALUATION)
    return DatasetRef(
        uri=str(folder),
        digest=digest.of_value([train, evaluation]),
        train_digest=train,
        evaluation_digest=evaluation,
        train_rows=built.counts["train_rows"],
        evaluation_rows=built.counts["evaluation_rows"],
        rejected=built.counts["rejected"],
        labels_digest=digest.of_file(folder / LABELS) if (folder / LABELS).exists() else "",
    )


def build(
    data: Data,
    prompt: Prompt,
    meter: Meter | None,
    folder: Path,
    scratch: Path,
    shown: int = ROWS,
    slices: Sequence[str] = (),
) -> Built:
    """Write rows and rejects to `folder`; downloads go to `scratch`. The report shows `shown` rows.

    With problems only the rejects are left there. Without a meter nothing is measured in tokens.
    """
    index = DocumentIndex(data.near_duplicate_jaccard, data.near_duplicate_containment)
    inputs, problems = open_inputs(data, prompt, scratch, slices)
    if problems:
        return Built(problems)
    labels = EvaluationLabels(slices, PARTS[OPEN_EVALUATION])
    with ExitStack() as stack:
        train = stack.enter_context(SplitWriter(folder / "train.partial", data.train_rows))
        evaluation = stack.enter_context(
            SplitWriter(folder / "evaluation.partial", data.evaluation_rows, labels)
        )
        tallies = _read_into(train, evaluation, data, prompt, inputs, meter, folder / REJECTS)
        train.close()
        evaluation.close()
        problems = _problems(data, inputs, tallies, train, evaluation)
        overlap = drop_overlap(index, evaluation.path, train.path, folder / TRAIN)
        if not problems and not overlap.kept.any():
            problems.append(
                f"every training row ({train.rows}) is, or nearly is, an evaluation document; "
                "name other data.train or data.evaluation"
            )
        if not problems and (problem := evaluation.facts.problem("evaluation rows")):
            problems.append(problem)
        problems += labels.problems(_columns_of_evaluation(inputs))
        counts = _counts(tallies, train, evaluation, overlap)
        if problems:
            (folder / TRAIN).unlink()
            return Built(problems, counts)
        evaluation.path.replace(folder / EVALUATION)
    if labels.names:
        write_labels(folder / LABELS, labels.labels())
    settings = meter.settings if meter else None
    report = full_report(data, prompt, inputs, tallies, train, evaluation, overlap, settings)
    report["remarks"] += labels.remarks()
    if meter:
        report["remarks"] += meter.notes()
        report["seen_rows"] = seen_rows(folder / TRAIN, meter, shown)
    return Built([], counts, report)


def _columns_of_evaluation(inputs: Inputs) -> list[str]:
    sources = [source for key, source in inputs.items() if key != "data.train" or len(inputs) == 1]
    found = [columns for source in sources for columns in source.columns]
    return sorted({name for columns in found for name in {*columns.sampled, *columns.late}})


def _read_into(
    train: SplitWriter,
    evaluation: SplitWriter,
    data: Data,
    prompt: Prompt,
    inputs: Inputs,
    meter: Meter | None,
    rejects: Path,
) -> Tallies:
    def split_of(source: str) -> SplitWriter:
        return evaluation if in_evaluation(source, data.evaluation_share) else train

    with rejects.open("wb") as file:
        if len(inputs) == 1:
            items = measured(inputs["data.train"], prompt, meter)
            return {"data.train": write_splits(items, split_of, (train, evaluation), file.write)}
        tallies, problems = {}, []
        for key, split in (
            ("data.train", train),
            ("data.evaluation", evaluation),
            (OPEN_EVALUATION, evaluation),
        ):
            if key not in inputs:
                continue
            if OPEN_EVALUATION in inputs and split is evaluation:
                split.begin_part(PARTS[key], data.evaluation_rows)
            items = measured(inputs[key], prompt, meter)
            try:
                tallies[key] = write_splits(items, partial(_always, split), (split,), file.write)
            except DataError as error:
                # A file that breaks in the middle; the other source is read too.
                problems += str(error).splitlines()
        if problems:
            raise DataError.of(problems)
        return tallies


def _always(split: SplitWriter, source: str) -> SplitWriter:
    return split


def _problems(
    data: Data, inputs: Inputs, tallies: Tallies, train: SplitWriter, evaluation: SplitWriter
) -> list[str]:
    problems = []
    for key, tally in tallies.items():
        spec = inputs[key].gathered.spec
        if tally.rejected / tally.read > data.max_rejected_share:
            problems += too_many_rejects(data, key, spec, tally)
        elif tally.rejected == tally.read:
            problems.append(f"{key}: {spec} holds no usable row; correct it, or name another")
    if len(tallies) == 1 and not problems:
        share = f"data.evaluation_share is {data.evaluation_share}"
        for split, other, change in ((evaluation, train, "raise"), (train, evaluation, "lower")):
            if not split.rows:
                problems.append(
                    f"{spec}: all {other.rows} rows are in the other split, none in "
                    f"{split.path.stem} ({share}); {change} it, add rows, or name data.evaluation"
                )
    return problems


def too_many_rejects(data: Data, key: str, spec: str, tally: Tally) -> list[str]:
    """The problem with an input of which too many rows cannot be used, and the first of them."""
    problems = [
        f"{key}: {tally.rejected} of {tally.read} rows of {spec} cannot be used "
        f"({tally.rejected / tally.read:.1%}; data.max_rejected_share allows "
        f"{data.max_rejected_share:.1%}); correct them, or allow more"
    ]
    return [*problems, *tally.rejects.lines()]


def _counts(
    tallies: Tallies, train: SplitWriter, evaluation: SplitWriter, overlap: Overlap
) -> dict[str, int]:
    return {
        "train_rows": int(overlap.kept.sum()),
        "evaluation_rows": evaluation.rows,
        "rejected": sum(tally.rejected for tally in tallies.values()),
        "duplicates": train.duplicates + evaluation.duplicates,
        "overlap": overlap.dropped,
    }
