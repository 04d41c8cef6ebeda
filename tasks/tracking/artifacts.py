"""Artifacts on this machine: where scratch lies, and fetching what a reference names."""

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
KEPT_DAYS = 30  # a copy that no run has used since: longer than between two scheduled retrainings
_roots: dict[tuple[str, str], str] = {}  # where runs keep their artifacts, by store and run id
_copied: dict[str, Path] = {}  # what this process has of a remote store's artifacts, by URI


def fetch(uri: str) -> Path:
    """A `runs:/` or `models:/m-...` artifact on this machine: in place on a local store, else a copy.

    A copy is kept for later runs, which check its digest as they would the original's (and fetch it
    anew where it is another): what a process has checked is what it goes on with. Raises RegistryError
    when it is not there.
    """
    from mlflow.exceptions import MlflowException  # late: a step's own process does without MLflow

    try:
        if uri in _copied and _copied[uri].exists():
            return _copied[uri]
        kept = _kept(uri)
        if not kept.exists():
            location = _location(uri)
            if local := _local_path(location):
                if not local.exists():
                    raise RegistryError(f"artifact {uri} is gone from {local}")
                return local
            _download(location, kept)
        os.utime(kept)  # in use
        _copied[uri] = kept
        return kept
    except (MlflowException, OSError) as error:
        raise RegistryError(f"artifact {uri} cannot be read: {error}") from error


def package(path: str, model_digest: str) -> Path:
    """A package on this machine, its bytes checked against the digest it is known by.

    `path`: a folder, or the `models:/m-...` URI of a logged model, of which a kept copy that is not what
    it was is fetched once more. Raises RegistryError.
    """

    def here() -> Path:
        return fetch(path) / "artifacts/package" if path.startswith("models:/") else Path(path)

    if not _once_more(path, lambda: digest.of_folder(here()) == model_digest):
        raise RegistryError(
            f"{path} is not what was judged: its files' digest is not {model_digest[:16]}...; "
            "restore it from a backup, or roll back to a version that is intact"
        )
    return here()


def _location(uri: str) -> str:
    """Where the store keeps an artifact."""
    import mlflow
    from mlflow.utils.uri import append_to_uri_path

    if uri.startswith("runs:/"):
        run_id, _, path = uri.removeprefix("runs:/").partition("/")
        return str(append_to_uri_path(_root(run_id), path))
    model_id = uri.removeprefix("models:/")
    return str(mlflow.MlflowClient().get_logged_model(model_id).artifact_location)


def know_root(info: Any) -> None:
    """Note where a run's artifacts lie, from its RunInfo: fixed when the run was made."""
    import mlflow

    _roots[mlflow.get_tracking_uri(), info.run_id] = info.artifact_uri


def store_of(run_id: str) -> Any:
    """Where a run's artifacts are stored to; MLflow's client would first ask the server where that is."""
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(_root(run_id), tracking_uri=mlflow.get_tracking_uri())


def _root(run_id: str) -> str:
    import mlflow

    known = (mlflow.get_tracking_uri(), run_id)
    if known not in _roots:
        know_root(mlflow.MlflowClient().get_run(run_id).info)
    return _roots[known]


def _local_path(location: str) -> Path | None:
    parts = urlparse(location)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def _download(location: str, target: Path) -> None:
    import mlflow

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        into = Path(partial) / "new"
        into.mkdir()
        found = Path(mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=into))
        try:
            found.rename(target)
        except OSError:
            if not target.exists():  # else another process was first, with the same
                raise


def _kept(uri: str) -> Path:
    """Where this machine keeps, or would keep, its copy: a name that says which store's and whose."""
    import mlflow

    store = digest.of_value(mlflow.get_tracking_uri())[:8]
    return workspace.work_folder() / "fetched" / f"{store}-{quote(uri, safe='')}"


def remember(uri: str, path: Path) -> None:
    """Take `path`, just stored as `uri`, for its copy: what was sent need not be fetched."""
    _copied[uri] = path


def forget(uri: str) -> None:
    """Fetch `uri`, and all below and above it, anew when it is next asked for: it is being stored."""

    def touched(known: str) -> bool:
        return f"{known}/".startswith(f"{uri}/") or f"{uri}/".startswith(f"{known}/")

    for known in filter(touched, list(_copied)):
        del _copied[known]
    here = _kept(uri)
    store = here.name.partition("-")[0]
    for path in here.parent.glob(f"{store}-*"):  # an earlier try of this run may have fetched them
        if touched(unquote(path.name.partition("-")[2])):
            _remove(path)


def intact(reference: T, check: Callable[[T], bool]) -> bool:
    """Whether what a reference names is what it was, by `check`, which looks at what `fetch` gives.

    A kept copy that is not may be of what was there before a retry stored it anew: it is then fetched.
    """
    return _once_more(getattr(reference, "uri", ""), lambda: check(reference))


def _once_more(uri: str, check: Callable[[], bool]) -> bool:
    """Whether `check` holds, if need be once the kept copy of `uri` has given way to a new one."""
    return check() or (_forget_kept(uri) and check())


def _forget_kept(uri: str) -> bool:
    """Remove the kept copy; whether there was one."""
    if _copied.pop(uri, None) is None or not _kept(uri).exists():
        return False
    _remove(_kept(uri))
    return True


def forget_old() -> None:
    """Remove copies that no run has asked for in KEPT_DAYS."""
    oldest = time.time() - KEPT_DAYS * 86400
    for path in (workspace.work_folder() / "fetched").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if path.stat().st_mtime < oldest:
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
