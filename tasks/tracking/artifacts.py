"""Artifacts on this machine: fetching what a reference names, and copies of a remote store's."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlparse

from tasks.contracts import digest
from tasks.contracts.errors import RegistryError
from tasks.processes import workspace

T = TypeVar("T")
COPY_DAYS = 30  # an unused copy is removed after: longer than between two scheduled retrainings
WHOLE = (
    "whole"  # the folder of models that were made of an adapter and its base (checked_package.py)
)
PARTIAL = "tmp"  # of a folder that a download is written to
_roots: dict[tuple[str, str], str] = {}  # artifact URI of runs, by store and run id
_copies: dict[str, Path] = {}  # copies of a remote store's artifacts, by URI


def fetch(uri: str) -> Path:
    """A `runs:/` or `models:/m-...` artifact on this machine: in place on a local store, else a copy.

    A copy is kept for later runs, which check its digest as they would check the original's, and fetch
    it again when it differs. Within one process the path of a URI stays the same. Raises RegistryError
    when the artifact does not exist.
    """
    from mlflow.exceptions import MlflowException  # late: a step's own process does without MLflow

    try:
        if uri in _copies and _copies[uri].exists():
            return _copies[uri]
        copy = _copy_path(uri)
        if not copy.exists():
            location = _location(uri)
            if local := _local_path(location):
                if not local.exists():
                    raise RegistryError(f"artifact {uri} is gone from {local}")
                return local
            _download(location, copy)
        os.utime(copy)  # in use
        _copies[uri] = copy
        return copy
    except (MlflowException, OSError) as error:
        raise RegistryError(f"artifact {uri} cannot be read: {error}") from error


def _location(uri: str) -> str:
    """Where the store keeps an artifact."""
    import mlflow
    from mlflow.utils.uri import append_to_uri_path

    if uri.startswith("runs:/"):
        run_id, _, path = uri.removeprefix("runs:/").partition("/")
        return str(append_to_uri_path(_root(run_id), path))
    model_id = uri.removeprefix("models:/")
    return str(mlflow.MlflowClient().get_logged_model(model_id).artifact_location)


def remember_root(info: Any) -> None:
    """Remember a run's artifact URI from its RunInfo: it is fixed when the run is created."""
    import mlflow

    _roots[mlflow.get_tracking_uri(), info.run_id] = info.artifact_uri


def repository_of(run_id: str) -> Any:
    """MLflow's artifact repository of a run, without the request by which its client would find it."""
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(_root(run_id), tracking_uri=mlflow.get_tracking_uri())


def repository_of_model(uri: str) -> Any:
    """MLflow's artifact repository of a logged model, `models:/m-...`; its paths begin at the model."""
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(_location(uri), tracking_uri=mlflow.get_tracking_uri())


def _root(run_id: str) -> str:
    import mlflow

    key = (mlflow.get_tracking_uri(), run_id)
    if key not in _roots:
        remember_root(mlflow.MlflowClient().get_run(run_id).info)
    return _roots[key]


def _local_path(location: str) -> Path | None:
    parts = urlparse(location)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def _download(location: str, target: Path) -> None:
    import mlflow

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=PARTIAL) as partial:
        folder = Path(partial) / "new"
        folder.mkdir()
        downloaded = Path(
            mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=folder)
        )
        try:
            downloaded.rename(target)
        except OSError:
            if not target.exists():  # else another process has downloaded the same
                raise


def _copy_path(uri: str) -> Path:
    """The path of this machine's copy, whether it exists or not: named by store and URI."""
    import mlflow

    store = digest.of_value(mlflow.get_tracking_uri())[:8]
    return workspace.work_folder() / "fetched" / f"{store}-{quote(uri, safe='')}"


def remember(uri: str, path: Path) -> None:
    """Use `path`, which was just stored as `uri`, as its copy: it need not be fetched."""
    _copies[uri] = path


def forget(uri: str) -> None:
    """Drop the copies of `uri`, and of all below and above it, since it is being stored again."""

    def overlaps(other: str) -> bool:
        return f"{other}/".startswith(f"{uri}/") or f"{uri}/".startswith(f"{other}/")

    for copied_uri in filter(overlaps, list(_copies)):
        del _copies[copied_uri]
    copy = _copy_path(uri)
    store = copy.name.partition("-")[0]
    for path in copy.parent.glob(f"{store}-*"):  # an earlier try of this run may have fetched them
        if overlaps(unquote(path.name.partition("-")[2])):
            _remove(path)


def intact(reference: T, check: Callable[[T], bool]) -> bool:
    """Whether what a reference names is unchanged, by `check`, which reads what `fetch` returns.

    A copy that fails may be older than what a retry has stored since: it is then fetched once more.
    """
    return check_or_refetch(getattr(reference, "uri", ""), lambda: check(reference))


def check_or_refetch(uri: str, check: Callable[[], bool]) -> bool:
    """Whether `check` holds; if not, once more after the copy of `uri` was removed."""
    return check() or (_remove_copy(uri) and check())


def _remove_copy(uri: str) -> bool:
    """Remove the copy; whether there was one."""
    if _copies.pop(uri, None) is None or not _copy_path(uri).exists():
        return False
    _remove(_copy_path(uri))
    return True


def forget_old() -> None:
    """Remove copies that no run has used for COPY_DAYS, and after a day what a killed download left."""
    work = workspace.work_folder()
    for path in (*(work / "fetched").glob("*"), *(work / WHOLE).glob("*")):
        days = 1 if path.name.startswith(PARTIAL) else COPY_DAYS
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            if path.stat().st_mtime < time.time() - days * 86400:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def readable(reference: Any) -> bool:
    """Whether what a reference's `uri` names can still be read."""
    try:
        return fetch(reference.uri).exists()
    except RegistryError:
        return False
