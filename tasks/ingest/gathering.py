"""A source's files, brought to this disk: a file, a folder, s3:// or hub:."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data
from tasks.ingest import hub, s3
from tasks.ingest.byte_streams import require_readable, stamp_of
from tasks.ingest.file_kinds import HEAD_BYTES, SUFFIXES_TEXT, data_suffix, named
from tasks.ingest.folders import choose_files, local_names
from tasks.ingest.row_types import ReadOptions, SourceFile, shown

S3, HUB = "s3://", "hub:"
SHARD = re.compile(r"(?P<before>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<after>.*)")


@dataclass(frozen=True)
class Gathered:
    """One source's files, in reading order, and other files of a folder."""

    spec: str  # as the recipe names it
    files: tuple[SourceFile, ...]
    ignored: tuple[str, ...] = ()


def contents_of(key: str, spec: str, split: str, data: Data) -> list[list[object]]:
    """What one source holds, as `source_digest` counts it. Raises DataError when there is nothing."""
    if spec.startswith(HUB):
        return [["hub", *hub.pinned(key, spec, data.revision), split]]
    if spec.startswith(S3):
        objects, _ = _objects(key, spec)
        return [["s3", item.uri, item.etag, item.size] for item in objects]
    root = Path(spec)
    files, _ = _local_files(key, spec)
    names = [file.relative_to(root).as_posix() if root.is_dir() else file.name for file in files]
    return [["file", name, _sha256(file)] for name, file in zip(names, files, strict=True)]


def gather(key: str, spec: str, split: str, data: Data, scratch: Path) -> Gathered:
    """Bring a source's files to this disk; downloads go to `scratch`, local files stay.

    Folders and prefixes are searched through, in name order. Raises DataError when there is
    nothing, an S3 server refuses, or the hub has no such dataset.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    options = ReadOptions(data.max_row_bytes, data.encoding)
    if spec.startswith(HUB):
        path = hub.download(key, spec, data.revision, split, scratch)
        size, sha256 = path.stat().st_size, _sha256(path)
        return Gathered(spec, (SourceFile(f"{spec}@{split}", path, size, sha256, options=options),))
    if spec.startswith(S3):
        objects, ignored = _objects(key, spec)
        fetched = [s3.download(o, scratch / str(n), options) for n, o in enumerate(objects)]
        return Gathered(spec, tuple(fetched), ignored)
    paths, ignored = _local_files(key, spec)
    return Gathered(spec, tuple(_local_file(path, options) for path in paths), ignored)


def _local_file(path: Path, options: ReadOptions) -> SourceFile:
    stamp = stamp_of(path)
    return SourceFile(str(path), path, stamp[0], _sha256(path), (), stamp, options)


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
    try:
        is_folder = root.is_dir()
    except OSError as error:  # a name of 5,000 characters
        raise DataError(
            f"{key}: {spec[:80]}... is no path ({error.strerror}); correct it"
        ) from error
    if is_folder:
        where = f"{key}: {spec}"
        chosen = choose_files(where, local_names(where, root))
        _refuse_other_rows(root, chosen.left_out)
        paths = [root / name for name in chosen.read]
        problems = _refusals(paths)
        if problems:
            raise DataError.of(problems)
        return paths, tuple(f"{root}/{name}" for name in chosen.left_out)
    if not root.exists():
        raise DataError(f"{key}: {_missing(root, spec)}")
    require_readable(f"{key}: {spec}", root)
    if root.stat().st_size == 0:
        raise DataError(f"{key}: {spec} is empty; put rows in it, or name another file")
    if not data_suffix(root.name):
        with root.open("rb") as stream:
            raise DataError(f"{key}: {_unknown(spec, stream.read(HEAD_BYTES))}")
    return [root], ()


def _missing(root: Path, spec: str) -> str:
    if root.is_symlink():
        return f"{spec} is a link to {root.readlink()}, which is not there; correct the link"
    siblings = [path.name for path in sorted(root.parent.glob("*")) if data_suffix(path.name)]
    hint = f"; {root.parent} has: {shown(siblings, 10)}" if siblings else ""
    if "://" in spec:
        hint = (
            "; addresses other than s3:// are not read: download the file, or name hub:owner/name"
        )
    elif spec.startswith("~") or "$" in spec:
        hint = "; write the path out: ~ and variables are not replaced"
    elif "*" in spec:
        hint += "; patterns are not read: name a file, or the folder"
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", spec) and not root.parent.exists():
        hint = f"; a data set of the hub is hub:{spec}"
    return f"no file or folder {spec} (looked in {Path.cwd()}){hint}"


def _unknown(spec: str, head: bytes) -> str:
    """What a message calls a file that is in none of the formats."""
    found = named(spec, head)
    if found is None:
        return f"{spec} is by its name none of {SUFFIXES_TEXT}; name a file or folder of rows"
    what, advice = found
    return f"{spec} is none of {SUFFIXES_TEXT}: it is {what}; {advice}"


def _refusals(paths: Sequence[Path]) -> list[str]:
    problems = []
    for path in paths:
        try:
            require_readable(str(path), path)
        except DataError as error:
            problems.append(str(error))
    return problems


def _refuse_other_rows(root: Path, left_out: Sequence[str]) -> None:
    """Raises DataError for a folder of `datasets` whose rows are others than those of its Arrow files."""
    for state_file in (root / name for name in left_out if Path(name).name == "state.json"):
        try:
            state = json.loads(state_file.read_text(encoding="utf-8"))
            parts = [part["filename"] for part in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not one that datasets wrote
        missing = [part for part in parts if not (state_file.parent / part).is_file()]
        if missing:
            raise DataError(
                f"{state_file} names files that are not there: {shown(missing, 10)}; copy the folder again"
            )
        if state.get("_indices_files"):
            raise DataError(
                f"{state_file}: the dataset is a selection of its Arrow files' rows; write it again after "
                "flatten_indices()"
            )


def missing_shards(gathered: Gathered) -> list[str]:
    """A note for each set of a folder's numbered parts (00000-of-00003) of which some are not there."""
    if [file.name for file in gathered.files] == [gathered.spec]:
        return []
    sets: dict[tuple[str, str], set[int]] = defaultdict(set)
    for file in gathered.files:
        if found := SHARD.fullmatch(file.name):
            key = f"{found['before']}-*-of-{found['count']}{found['after']}", found["count"]
            sets[key].add(int(found["number"]))
    return [
        f"{name}: {len(numbers)} of {int(count)} parts are there"
        for (name, count), numbers in sets.items()
        if len(numbers) != int(count)
    ]


def _objects(key: str, spec: str) -> tuple[list[s3.Object], tuple[str, ...]]:
    found = s3.objects(key, spec)
    _, _, path = spec.removeprefix(S3).partition("/")
    if [item.key for item in found] == [path]:
        if not data_suffix(path):
            raise DataError(f"{key}: {_unknown(spec, b'')}")
        return found, ()
    start = len(path) + 1 if path and not path.endswith("/") else len(path)
    by_name = {item.key[start:]: item for item in found}
    chosen = choose_files(f"{key}: {spec}", list(by_name))
    prefix = found[0].uri[: len(found[0].uri) - len(found[0].key) + start]
    return [by_name[n] for n in chosen.read], tuple(prefix + name for name in chosen.left_out)
