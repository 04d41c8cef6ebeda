"""Where rows come from: a file, a folder, s3:// or hub:, each brought to files on this disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tasks.contracts import digest
from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data
from tasks.ingest import hub, s3
from tasks.ingest.reading import PACKED, SUFFIXES
from tasks.ingest.row_types import SourceFile, shown

S3, HUB = "s3://", "hub:"


@dataclass(frozen=True)
class Gathered:
    """One source's files, in reading order, and files of a folder that are no data."""

    spec: str  # as the recipe names it
    files: tuple[SourceFile, ...]
    ignored: tuple[str, ...] = ()


def sources_of(data: Data) -> dict[str, tuple[str, str]]:
    """The sources that a recipe names: key to (source, hub split)."""
    named = {"data.train": (data.train, data.train_split)}
    if data.evaluation is not None:
        named["data.evaluation"] = (data.evaluation, data.evaluation_split)
    return named


def source_digest(data: Data) -> str:
    """One digest of everything that the recipe's sources hold, for use as a cache key.

    Local files count by name and SHA-256, S3 objects by key, ETag and size (nothing is
    downloaded), hub datasets by name, revision and split. Raises DataError for all sources that
    are missing or empty.
    """
    found: dict[str, list[list[object]]] = {}
    problems: list[str] = []
    for key, (spec, split) in sources_of(data).items():
        try:
            found[key] = held(key, spec, split, data.revision)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError.of(problems)
    return digest.of_value(found)


def held(key: str, spec: str, split: str, revision: str | None) -> list[list[object]]:
    """What one source holds, as `source_digest` counts it. Raises DataError for none."""
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


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:  # as S3 and data sets' own lists of files say it
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); mend its rights") from error


def _local_files(key: str, spec: str) -> tuple[list[Path], tuple[str, ...]]:
    root = Path(spec)
    if root.is_dir():
        found = digest.visible_files(root)
        data, other = _by_suffix(key, spec, [str(path) for path in found])
        return [Path(name) for name in data], other
    if not root.is_file():
        near = [path.name for path in sorted(root.parent.glob("*")) if path.suffix in SUFFIXES]
        there = f"; {root.parent} has: {shown(near, 10)}" if near else ""
        raise DataError(f"{key}: no file or folder {spec} (looked in {Path.cwd()}){there}")
    if root.suffix.lower() not in SUFFIXES:
        raise DataError(f"{key}: {spec} is none of {', '.join(SUFFIXES)}; {_mend([spec])}")
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
        there = shown(packed or names, 10) or "nothing"
        lacks = "holds packed files" if packed else f"holds none of {', '.join(SUFFIXES)}"
        raise DataError(f"{key}: {spec} {lacks}, but {there}; {_mend(packed)}")
    return data, tuple(name for name in names if name not in set(data))


def _mend(names: list[str]) -> str:
    if any(Path(name).suffix.lower() in PACKED for name in names):
        return "unpack them first"
    return "name a file or folder of rows"
