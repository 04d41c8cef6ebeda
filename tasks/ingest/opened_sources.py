"""A recipe's sources, at hand and with their columns known, or all the problems with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data, Fields
from tasks.ingest.fields import Columns, choose, problems_of
from tasks.ingest.reading import sample
from tasks.ingest.row_types import SourceFile
from tasks.ingest.sources import Gathered, gather, sources_of

LISTED_PROBLEMS = 20


@dataclass(frozen=True)
class Input:
    """One source with the columns used of each of its files."""

    gathered: Gathered
    columns: tuple[Columns, ...]

    def __iter__(self) -> Iterator[tuple[SourceFile, Columns]]:
        return zip(self.gathered.files, self.columns, strict=True)


def open_inputs(data: Data, scratch: Path) -> tuple[dict[str, Input], list[str]]:
    """Every source that can be read, by its key in the recipe, and the problems of the others.

    Downloads go to `scratch`. Only the first rows of each file are read.
    """
    inputs: dict[str, Input] = {}
    problems: list[str] = []
    for key, (spec, split) in sources_of(data).items():
        try:
            inputs[key] = open_input(key, spec, split, data, scratch)
        except DataError as error:
            problems += str(error).splitlines()
    return inputs, problems


def open_input(key: str, spec: str, split: str, data: Data, scratch: Path) -> Input:
    """One source, `key` its name in messages. Raises DataError with all its problems."""
    gathered = gather(key, spec, split, data.revision, scratch / key)
    columns, problems = _columns(key, gathered, data.fields)
    if problems:
        raise DataError.of(problems)
    return Input(gathered, columns)


def _columns(key: str, gathered: Gathered, fields: Fields) -> tuple[tuple[Columns, ...], list[str]]:
    columns: list[Columns] = []
    problems: list[str] = []
    filled = 0
    for file in gathered.files:
        try:
            used, found, rows = _columns_of(file, fields)
        except DataError as error:
            problems.append(str(error))
            continue
        columns.append(used)
        problems += found
        filled += rows > 0
    if not problems and not filled:
        problems.append(f"{key}: {gathered.spec} holds no rows; put some in it, or name another")
    more = len(problems) - LISTED_PROBLEMS
    if more > 0:
        problems = [*problems[:LISTED_PROBLEMS], f"... and {more} more problems in {gathered.spec}"]
    return tuple(columns), problems


def _columns_of(file: SourceFile, fields: Fields) -> tuple[Columns, list[str], int]:
    names, rows, bad = sample(file)
    if rows:
        columns, found = choose(fields, names, rows)
        return columns, problems_of(file.name, columns, found, names), len(rows)
    # A file of no rows, as writers of many parts leave them, is no problem by itself.
    problems = [f"{file.name}:{raw.line} {raw.problem}" for raw in bad[:3]]
    if problems:
        problems.append(f"{file.name}: none of its first {len(bad)} rows can be read")
    return choose(fields, names, rows)[0], problems, 0
