"""Where rows come from: a file, a folder, s3:// or hub:, brought to this disk, with the columns used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.contracts import digest
from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data, Fields, Prompt
from tasks.ingest import hub, s3
from tasks.ingest.columns import Columns, choose, problems_of
from tasks.ingest.reading import PACKED, SUFFIXES, sample
from tasks.ingest.row_types import SourceFile, shown

S3, HUB = "s3://", "hub:"
LISTED_PROBLEMS = 20


@dataclass(frozen=True)
class Gathered:
    """One source's files, in reading order, and other files of a folder."""

    spec: str  # as the recipe names it
    files: tuple[SourceFile, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """One source with the columns used of each of its files."""

    gathered: Gathered
    columns: tuple[Columns, ...]

    def __iter__(self) -> Iterator[tuple[SourceFile, Columns]]:
        return zip(self.gathered.files, self.columns, strict=True)


def sources_of(data: Data) -> dict[str, tuple[str, str]]:
    """The sources that a recipe names: key to (source, hub split)."""
    named = {"data.train": (data.train, data.train_split)}
    if data.evaluation is not None:
        named["data.evaluation"] = (data.evaluation, data.evaluation_split)
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
            contents[key] = contents_of(key, spec, split, data.revision)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError.of(problems)
    return digest.of_value(contents)


def contents_of(key: str, spec: str, split: str, revision: str | None) -> list[list[object]]:
    """What one source holds, as `source_digest` counts it. Raises DataError when there is nothing."""
    if spec.startswith(HUB):
        return [["hub", *hub.pinned(key, spec, revision), split]]
    if spec.startswith(S3):
        objects, _ = _data_objects(key, spec)
        return [["s3", item.uri, item.etag, item.size] for item in objects]
    root = Path(spec)
    files, _ = _local_files(key, spec)
    names = [file.relative_to(root).as_posix() if root.is_dir() else file.name for file in files]
    return [["file", name, _sha256(file)] for name, file in zip(names, files, strict=True)]


def gather(key: str, spec: str, split: str, revision: str | None, scratch: Path) -> Gathered:
    """Bring a source's files to this disk; downloads go to `scratch`, local files stay.

    Folders and prefixes are searched through, in name order. Raises DataError when there is
    nothing, an S3 server refuses, or the hub has no such dataset.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    if spec.startswith(HUB):
        path = hub.download(key, spec, revision, split, scratch)
        name = f"{spec}@{split}"
        return Gathered(spec, (SourceFile(name, path, path.stat().st_size, _sha256(path)),))
    if spec.startswith(S3):
        objects, ignored = _data_objects(key, spec)
        fetched = [s3.download(item, scratch / str(n)) for n, item in enumerate(objects)]
        return Gathered(spec, tuple(fetched), ignored)
    paths, ignored = _local_files(key, spec)
    files = [SourceFile(str(path), path, path.stat().st_size, _sha256(path)) for path in paths]
    return Gathered(spec, tuple(files), ignored)


def open_inputs(data: Data, prompt: Prompt, scratch: Path) -> tuple[dict[str, Input], list[str]]:
    """Every source that can be read, by its key in the recipe, and the problems of the others.

    Downloads go to `scratch`. Only the first rows of each file are read.
    """
    inputs: dict[str, Input] = {}
    problems: list[str] = []
    for key, (spec, split) in sources_of(data).items():
        try:
            inputs[key] = open_input(key, spec, split, data, prompt, scratch)
        except DataError as error:
            problems += str(error).splitlines()
    return inputs, problems


def open_input(key: str, spec: str, split: str, data: Data, prompt: Prompt, scratch: Path) -> Input:
    """One source, `key` its name in messages. Raises DataError with all its problems."""
    gathered = gather(key, spec, split, data.revision, scratch / key)
    columns, problems = _columns(key, gathered, data.fields, prompt)
    if problems:
        raise DataError.of(problems)
    return Input(gathered, columns)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:  # S3 and the file lists of data sets give SHA-256
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); correct its permissions"
        ) from error


def _local_files(key: str, spec: str) -> tuple[list[Path], tuple[str, ...]]:
    root = Path(spec)
    if root.is_dir():
        paths = digest.visible_files(root)
        data, other = _by_suffix(key, spec, [str(path) for path in paths])
        return [Path(name) for name in data], other
    if not root.is_file():
        siblings = [path.name for path in sorted(root.parent.glob("*")) if path.suffix in SUFFIXES]
        hint = f"; {root.parent} has: {shown(siblings, 10)}" if siblings else ""
        raise DataError(f"{key}: no file or folder {spec} (looked in {Path.cwd()}){hint}")
    if root.suffix.lower() not in SUFFIXES:
        raise DataError(f"{key}: {spec} is none of {', '.join(SUFFIXES)}; {_advice([spec])}")
    if root.stat().st_size == 0:
        raise DataError(f"{key}: {spec} is empty; put rows in it, or name another file")
    return [root], ()


def _data_objects(key: str, spec: str) -> tuple[list[s3.Object], tuple[str, ...]]:
    objects = {item.uri: item for item in s3.objects(key, spec)}
    names, ignored = _by_suffix(key, spec, sorted(objects))
    return [objects[name] for name in names], ignored


def _by_suffix(key: str, spec: str, names: list[str]) -> tuple[list[str], tuple[str, ...]]:
    data = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
    packed = [name for name in names if Path(name).suffix.lower() in PACKED]
    if packed or not data:
        listed = shown(packed or names, 10) or "nothing"
        problem = (
            f"holds compressed files: {listed}"
            if packed
            else f"holds none of {', '.join(SUFFIXES)}, but {listed}"
        )
        raise DataError(f"{key}: {spec} {problem}; {_advice(packed)}")
    return data, tuple(name for name in names if name not in set(data))


def _advice(names: list[str]) -> str:
    if any(Path(name).suffix.lower() in PACKED for name in names):
        return "unpack them first"
    return "name a file or folder of rows"


def _columns(
    key: str, gathered: Gathered, fields: Fields, prompt: Prompt
) -> tuple[tuple[Columns, ...], list[str]]:
    columns: list[Columns] = []
    problems: list[str] = []
    files_with_rows = 0
    for file in gathered.files:
        try:
            used, file_problems, rows = _columns_of(file, fields, prompt)
        except DataError as error:
            problems.append(str(error))
            continue
        columns.append(used)
        problems += file_problems
        files_with_rows += rows > 0
    if not problems and not files_with_rows:
        problems.append(f"{key}: {gathered.spec} holds no rows; put some in it, or name another")
    more = len(problems) - LISTED_PROBLEMS
    if more > 0:
        problems = [*problems[:LISTED_PROBLEMS], f"... and {more} more problems in {gathered.spec}"]
    return tuple(columns), problems


def _columns_of(file: SourceFile, fields: Fields, prompt: Prompt) -> tuple[Columns, list[str], int]:
    names, rows, bad = sample(file)
    if rows:
        columns, fit = choose(fields, names, rows)
        return columns, problems_of(file.name, columns, fit, names, prompt), len(rows)
    # A file without rows, as writers of many parts leave them, is not a problem by itself.
    problems = [f"{file.name}:{raw.line} {raw.problem}" for raw in bad[:3]]
    if problems:
        problems.append(f"{file.name}: none of its first {len(bad)} rows can be read")
    return choose(fields, names, rows)[0], problems, 0
