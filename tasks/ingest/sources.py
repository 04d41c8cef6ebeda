"""Where rows come from: a file, a folder, s3:// or hub:, brought to this disk, with the columns used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.contracts import digest
from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data, Fields, Prompt
from tasks.ingest.column_problems import problems_of
from tasks.ingest.columns import Columns, choose
from tasks.ingest.gathering import Gathered, contents_of, gather
from tasks.ingest.groups import Groups
from tasks.ingest.reading import Sample, sample
from tasks.ingest.row_types import SourceFile

LISTED_PROBLEMS = 20


@dataclass(frozen=True)
class Input:
    """One source with the columns used of each of its files."""

    gathered: Gathered
    columns: tuple[Columns, ...]
    read_as: tuple[list[str], ...]  # of each file: its form and what was found or changed, in words

    def __iter__(self) -> Iterator[tuple[SourceFile, Columns]]:
        return zip(self.gathered.files, self.columns, strict=True)


def sources_of(data: Data) -> dict[str, tuple[str, str]]:
    """The sources that a recipe names: key to (source, hub split)."""
    named = {"data.train": (data.train, data.train_split)}
    if data.evaluation is not None:
        named["data.evaluation"] = (data.evaluation, data.evaluation_split)
    if data.open_evaluation is not None:
        named["data.open_evaluation"] = (data.open_evaluation, data.evaluation_split)
    return named


def source_digest(data: Data) -> str:
    """One digest of everything that the recipe's sources hold, for use in a step key.

    Local files count by name and SHA-256, S3 objects by key, ETag and size (nothing is
    downloaded), hub datasets by name, revision and split. Raises DataError for all sources that
    are missing or empty.
    """
    contents: dict[str, list[list[object]]] = {}
    problems: list[str] = []
    for key, (spec, split) in sources_of(data).items():
        try:
            contents[key] = contents_of(key, spec, split, data)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError.of(problems)
    return digest.of_value(contents)


def open_inputs(
    data: Data, prompt: Prompt, scratch: Path, slices: Sequence[str] = ()
) -> tuple[dict[str, Input], list[str]]:
    """Every source that can be read, by its key in the recipe, and the problems of the others.

    Downloads go to `scratch`. Only the first rows of each file are read. `slices`: of the recipe's gate.
    """
    inputs: dict[str, Input] = {}
    problems: list[str] = []
    for key, (spec, split) in sources_of(data).items():
        try:
            inputs[key] = open_input(key, spec, split, data, prompt, scratch, slices)
        except DataError as error:
            problems += str(error).splitlines()
    return inputs, problems


def open_input(
    key: str,
    spec: str,
    split: str,
    data: Data,
    prompt: Prompt,
    scratch: Path,
    slices: Sequence[str] = (),
) -> Input:
    """One source, `key` its name in messages. Raises DataError with all its problems."""
    gathered = gather(key, spec, split, data, scratch / key)
    fields = data.fields if key == "data.train" else data.fields_of_evaluation
    columns, read_as, problems = _columns(key, gathered, fields, prompt, slices)
    if key != "data.train":
        problems = [_of_evaluation(problem, data) for problem in problems]
    if problems:
        raise DataError.of(problems)
    return Input(gathered, columns, read_as)


def _of_evaluation(problem: str, data: Data) -> str:
    """Where columns of evaluation files are set, which need not be those of the training files."""
    if data.evaluation_fields is not None:
        return problem.replace("data.fields", "data.evaluation_fields")
    if "data.fields" in problem:
        problem += "; if only these files have other columns, name theirs in data.evaluation_fields"
    return problem


def _columns(
    key: str, gathered: Gathered, fields: Fields, prompt: Prompt, slices: Sequence[str]
) -> tuple[tuple[Columns, ...], tuple[list[str], ...], list[str]]:
    columns: list[Columns] = []
    read_as: list[list[str]] = []
    problems: list[str] = []
    files_with_rows = 0
    for file in gathered.files:
        try:
            begin = sample(file)
            used, file_problems = _columns_of(file, begin, fields, prompt, slices)
        except DataError as error:
            problems.append(str(error))
            continue
        columns.append(used)
        problems += file_problems
        read_as.append(begin.read_as)
        files_with_rows += bool(begin.rows)
    if not problems and not files_with_rows:
        problems.append(f"{key}: {gathered.spec} holds no rows; put some in it, or name another")
    more = len(problems) - LISTED_PROBLEMS
    if more > 0:
        problems = [*problems[:LISTED_PROBLEMS], f"... and {more} more problems in {gathered.spec}"]
    return tuple(columns), tuple(read_as), problems


def _columns_of(
    file: SourceFile, begin: Sample, fields: Fields, prompt: Prompt, slices: Sequence[str]
) -> tuple[Columns, list[str]]:
    columns, fit = choose(fields, begin.columns, begin.rows, prompt, slices)
    if begin.rows:
        problems = problems_of(file.name, columns, fit, begin.columns, begin.rows, fields, prompt)
        if problems and "it has: " in problems[-1] and begin.read_as[0] == "CSV":
            problems[-1] += "; if line 1 of the file is a row, put a line of column names before it"
        return columns, problems
    # A file without rows, as writers of many parts leave them, is not a problem by itself.
    groups = Groups()
    for raw in begin.unreadable:
        groups.add(raw.problem, f"{file.name}:{raw.line} {raw.problem}")
    problems = groups.lines()
    if problems:
        is_json = begin.unreadable[0].text.startswith(("{", "["))
        no_json = begin.read_as[0] == "JSONL" and not is_json
        hint = "; if it is CSV, name it .csv" if no_json else ""
        count = len(begin.unreadable)
        problems.append(f"{file.name}: none of its first {count} rows can be read{hint}")
    return columns, problems
