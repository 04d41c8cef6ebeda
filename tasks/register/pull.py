"""A verified copy of a registered package in a folder, for engines and machines without this project.

MLflow's own download writes into the folder as it goes and checks nothing. Here files arrive in a folder
beside it, one after the other; a pull that was killed goes on with those that it lacks. The folder gets its
name once the digest is the one that the registry holds: it is there whole, or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from tasks.contracts import digest
from tasks.contracts.errors import RegistryError, StoreUnavailable
from tasks.contracts.units import GIB
from tasks.processes import file_lock
from tasks.register import lookup
from tasks.serving.summarizer import SETTINGS_FILE, adapter
from tasks.tracking import artifacts, checked_package

PACKAGE = "artifacts/package"  # of a logged model
RECORD = ".precis-pull.json"  # hidden, so that it is no part of the digest
INCOMING = ".incoming"


@dataclass(frozen=True)
class Pulled:
    """What was pulled. `files`: how many were fetched now; 0: the folder held this model already."""

    title: str
    digest: str
    folder: Path
    files: int
    kept: int  # of an earlier pull that was interrupted
    size_bytes: int


def pull(client: Any, reference: str, folder: Path) -> Pulled:
    """Copy the package that `reference` names (as `lookup.resolve`) to `folder`, and check its digest.

    Raises RegistryError when there is no such model, when `folder` holds something else, when the disk is
    full, and when the store's files are not those that were judged; `folder` is then as it was.
    """
    model = lookup.resolve(client, reference)
    folder = folder.absolute()
    if _holds(folder, model):
        size = sum(file.stat().st_size for file in digest.visible_files(folder))
        return Pulled(model.title, model.digest, folder, 0, 0, size)
    partial = folder.with_name(f".{folder.name}.pull-{model.digest[:16]}")
    try:
        with locked(folder):
            if adapter.is_adapter(artifacts.fetch(model.uri) / PACKAGE):
                return _put_together(model, partial, folder)
            return _fetch(model, partial, folder)
    except (MlflowException, OSError) as error:
        raise StoreUnavailable(
            f"{model.title} could not be pulled ({error}); run the same command again: it goes on with what "
            f"{partial} lacks"
        ) from error


def _holds(folder: Path, model: lookup.LoggedModel) -> bool:
    """Whether the folder is this model already. Raises RegistryError where it is something else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise RegistryError(f"{folder} is a file; name a folder that is not there yet")
    names = sorted(os.listdir(folder))
    if not names:
        return False
    other = "name another folder, or remove this one"
    record = folder / RECORD
    title = _recorded(record)
    if not (folder / SETTINGS_FILE).is_file() and not title:
        raise RegistryError(f"{folder} is not empty (it holds {names[0]}); {other}")
    if digest.of_folder(folder) == model.digest:
        return True
    if title == model.title:
        raise RegistryError(
            f"{folder} was pulled as {title}, and its files have changed since: their digest is not "
            f"{model.digest[:16]}...; remove it and pull again, or {other}"
        )
    raise RegistryError(f"{folder} holds {title or 'another package'}, not {model.title}; {other}")


def _recorded(record: Path) -> str:
    """What a folder was pulled as; empty where no pull says so."""
    try:
        found = json.loads(record.read_text())
    except (OSError, ValueError):  # not there, or not ours
        return ""
    return str(found.get("title", "")) if isinstance(found, dict) else ""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One pull at a time into a folder. Raises RegistryError when another is running."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.pull-lock")
    busy = RegistryError(
        f"another process is pulling into {folder}; wait for it, or name another folder"
    )
    with file_lock.hold_lock(lock, 0.0, busy):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _fetch(model: lookup.LoggedModel, partial: Path, folder: Path) -> Pulled:
    repository = artifacts.repository_of_model(model.uri)
    remote = dict(_listed(repository, PACKAGE))
    if not remote:
        raise RegistryError(f"{model.title} has no files in the store; see {model.uri} in MLflow")
    kept = _download(repository, remote, partial)
    if kept and digest.of_folder(partial) != model.digest:
        shutil.rmtree(partial)  # what an interrupted pull left was not whole after all
        kept = _download(repository, remote, partial)
    if digest.of_folder(partial) != model.digest:
        shutil.rmtree(partial)
        raise RegistryError(
            f"{model.title} is not what was judged: the digest of the store's files is not "
            f"{model.digest[:16]}...; nothing was written to {folder}; restore the store from a backup, or "
            "pull another version"
        )
    _name(partial, folder, model)
    return Pulled(model.title, model.digest, folder, len(remote) - kept, kept, sum(remote.values()))


def _put_together(model: lookup.LoggedModel, partial: Path, folder: Path) -> Pulled:
    """The merged model of an adapter and its base; what was fetched of them is kept for a while."""
    shutil.rmtree(partial, ignore_errors=True)
    scratch = partial.with_name(f"{partial.name}-step")
    try:
        checked_package.write_whole(model.uri, model.digest, partial, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    files = digest.visible_files(partial)
    size_bytes = sum(file.stat().st_size for file in files)
    _name(partial, folder, model)
    return Pulled(model.title, model.digest, folder, len(files), 0, size_bytes)


def _name(partial: Path, folder: Path, model: lookup.LoggedModel) -> None:
    record = {"title": model.title, "digest": model.digest}
    (partial / RECORD).write_text(json.dumps(record) + "\n")
    partial.rename(folder)  # over an empty folder too


def _listed(repository: Any, path: str) -> Iterator[tuple[str, int]]:
    """Path and size of each file below `path`; what the digest does not cover is left out."""
    for entry in repository.list_artifacts(path):
        name = entry.path.rpartition("/")[2]
        if name.startswith(".") or name == "__pycache__":
            continue
        if entry.is_dir:
            yield from _listed(repository, entry.path)
        else:
            yield entry.path, int(entry.file_size or 0)


def _download(repository: Any, remote: dict[str, int], partial: Path) -> int:
    """Fetch the files that `partial` lacks; how many it had."""
    partial.mkdir(exist_ok=True)
    incoming = partial / INCOMING
    shutil.rmtree(incoming, ignore_errors=True)
    targets = {path: partial / Path(path).relative_to(PACKAGE) for path in remote}
    expected = set(targets.values())
    for file in digest.visible_files(partial):
        if file not in expected:
            file.unlink()
    missing = {
        path: target
        for path, target in targets.items()
        if not target.is_file() or target.stat().st_size != remote[path]
    }
    needed, free = sum(remote[path] for path in missing), shutil.disk_usage(partial).free
    if needed > free:
        raise RegistryError(
            f"the model needs {needed / GIB:.2f} GiB more in {partial.parent}, where {free / GIB:.2f} GiB "
            "are free; free some space, or name a folder on another disk"
        )
    for path, target in missing.items():
        incoming.mkdir(exist_ok=True)
        downloaded = Path(repository.download_artifacts(path, str(incoming)))
        target.parent.mkdir(parents=True, exist_ok=True)
        downloaded.rename(target)
    shutil.rmtree(incoming, ignore_errors=True)
    return len(remote) - len(missing)
