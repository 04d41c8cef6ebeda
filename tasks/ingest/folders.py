"""Which files of a folder hold its rows: the same on a local disk, behind symbolic links and on S3."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.contracts.errors import DataError
from tasks.ingest.file_kinds import SUFFIXES_TEXT, data_suffix, is_archive
from tasks.ingest.row_types import shown

# Written by `datasets` beside the rows: a description of them.
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


@dataclass(frozen=True)
class Chosen:
    """Names of a folder's files, relative to it: those that are read, in order, and those left out."""

    read: tuple[str, ...]
    left_out: tuple[str, ...]


def is_hidden(name: str) -> bool:
    """Whether a part of the path begins with . or _, as checkpoints, markers and half-written parts do."""
    return any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)


def choose_files(where: str, names: Sequence[str]) -> Chosen:
    """Which of a folder's files (names relative to it) hold rows.

    Raises DataError, which begins with `where`, when none does, or when rows cannot be reached.
    """
    if any("_delta_log" in PurePosixPath(name).parts for name in names):
        raise DataError(
            f"{where} is a Delta table: its files hold deleted rows too; export the table as Parquet"
        )
    visible = [name for name in sorted(names) if not is_hidden(name)]
    archives = [name for name in visible if is_archive(name)]
    read = [
        name
        for name in visible
        if data_suffix(name) and PurePosixPath(name).name not in DESCRIPTIONS
    ]
    if archives:
        raise DataError(
            f"{where} holds archives: {shown(archives, 10)}; unpack them first, or move them elsewhere"
        )
    if not read:
        found = shown(sorted(names), 10) or "nothing"
        raise DataError(
            f"{where} holds none of {SUFFIXES_TEXT}, but {found}; name a file or folder of rows"
        )
    _refuse_several_splits(where, visible)
    others = sorted({_up_to_hidden(name) for name in names} - set(read))
    return Chosen(tuple(read), tuple(others))


def _up_to_hidden(name: str) -> str:
    """The name, or that of the hidden folder it is in."""
    parts = PurePosixPath(name).parts
    for count, part in enumerate(parts[:-1], 1):
        if is_hidden(part):
            return "/".join(parts[:count]) + "/"
    return name


def _refuse_several_splits(where: str, names: Sequence[str]) -> None:
    if "dataset_dict.json" in names:
        splits = sorted({PurePosixPath(n).parts[0] for n in names if n.count("/") == 1})
        raise DataError(
            f"{where} was written by DatasetDict.save_to_disk and holds several splits; name one: "
            f"{shown(splits, 10)}"
        )


def local_names(where: str, root: Path) -> list[str]:
    """Every file below `root`, links followed, with / between parts; of hidden folders their names alone.

    Raises DataError for links that lead to nothing or round in a circle, and folders that may not be
    read.
    """
    names: list[str] = []
    _walk(where, root, "", (_identity(root),), names)
    return names


def _walk(
    where: str, folder: Path, prefix: str, above: tuple[tuple[int, int], ...], names: list[str]
) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{where}: {folder} cannot be read ({error.strerror}); correct its permissions"
        ) from error
    for entry in entries:
        name = prefix + entry.name
        if not entry.is_dir():
            if entry.is_symlink() and not os.path.exists(entry.path) and data_suffix(entry.name):
                raise DataError(
                    f"{where}: {entry.path} is a link to {os.readlink(entry.path)}, which is not there; "
                    "correct or remove the link"
                )
            names.append(name)
            continue
        if is_hidden(entry.name):  # its files are left out: its name stands for them
            names.append(f"{name}/")
            continue
        identity = _identity(Path(entry.path))
        if identity in above:
            raise DataError(
                f"{where}: {entry.path} is a link to a folder above it; remove the link: it has no end"
            )
        _walk(where, Path(entry.path), f"{name}/", (*above, identity), names)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino
