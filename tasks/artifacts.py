"""Artifacts on this machine: where scratch lies, and fetching what a reference names."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from tasks import digest
from tasks.errors import RegistryError

EMBEDDED_STORE = Path("mlruns")
_roots: dict[tuple[str, str], str] = {}  # where runs keep their artifacts, by store and run id
_copied: dict[str, Path] = {}  # what this process has of a remote store's artifacts, by URI


def work_folder() -> Path:
    """Scratch space of this machine: PRECIS_WORK, or mlruns/work."""
    return Path(os.environ.get("PRECIS_WORK") or EMBEDDED_STORE / "work").absolute()


def fetch(uri: str) -> Path:
    """A `runs:/` or `models:/m-...` artifact on this machine: in place on a local store, else a copy.

    Copies of models are kept (they never change), others until `forget` or `forget_copies`: what a
    process has checked is what it goes on with. Raises RegistryError when it is not there.
    """
    from mlflow.exceptions import MlflowException  # late: a step's own process does without MLflow

    try:
        location = _location(uri)
        if local := _local_path(location):
            if not local.exists():
                raise RegistryError(f"artifact {uri} is gone from {local}")
            return local
        if uri not in _copied or not _copied[uri].exists():
            _copied[uri] = _download(uri, location)
        return _copied[uri]
    except (MlflowException, OSError) as error:
        raise RegistryError(f"artifact {uri} cannot be read: {error}") from error


def package(path: str, model_digest: str) -> Path:
    """A package on this machine, its bytes checked against the digest it is known by.

    `path`: a folder, or the `models:/m-...` URI of a logged model. Raises RegistryError.
    """
    folder = Path(path)
    if path.startswith("models:/"):
        folder = fetch(path) / "artifacts" / "package"
    if digest.of_folder(folder) != model_digest:
        raise RegistryError(
            f"{path} is not what was judged: its files' digest is not {model_digest[:16]}...; "
            "restore it from a backup, or roll back to a version that is intact"
        )
    return folder


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


def _root(run_id: str) -> str:
    import mlflow

    known = (mlflow.get_tracking_uri(), run_id)
    if known not in _roots:
        know_root(mlflow.MlflowClient().get_run(run_id).info)
    return _roots[known]


def _local_path(location: str) -> Path | None:
    parts = urlparse(location)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def _download(uri: str, location: str) -> Path:
    import mlflow

    forever = uri.startswith("models:/")
    target = (work_folder() / "fetched" if forever else _copies()) / digest.of_value(uri)[:16]
    if forever and target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        found = Path(mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=partial))
        if target.exists():  # forgotten since: it was stored anew
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        if found == Path(partial):
            shutil.copytree(partial, target)
        else:
            found.rename(target)
    return target


def _copies() -> Path:
    return work_folder() / "fetched" / f"process-{os.getpid()}"


def remember(uri: str, path: Path) -> None:
    """Take `path`, just stored as `uri`, for its copy: what was sent need not be fetched."""
    _copied[uri] = path


def forget(uri: str) -> None:
    """Fetch `uri`, and all below and above it, anew when it is next asked for: it is being stored."""
    for known in list(_copied):
        if f"{known}/".startswith(f"{uri}/") or f"{uri}/".startswith(f"{known}/"):
            del _copied[known]


def forget_copies() -> None:
    """Remove this process's copies of runs' artifacts."""
    _copied.clear()
    shutil.rmtree(_copies(), ignore_errors=True)


def readable(reference: Any) -> bool:
    """Whether what a reference's `uri` names can still be read."""
    try:
        return fetch(reference.uri).exists()
    except RegistryError:
        return False
