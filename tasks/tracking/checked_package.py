"""A model's package on this machine, its bytes checked: a folder, a logged model, or adapter and base."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tasks.contracts import digest
from tasks.contracts.errors import RegistryError
from tasks.processes import workspace
from tasks.processes.file_lock import hold_lock
from tasks.serving.summarizer import adapter, pyfunc
from tasks.serving.summarizer.adapter import BaseChanged, StoredBase
from tasks.tracking import whole_model
from tasks.tracking.artifacts import WHOLE, check_or_refetch, fetch

INTACT = "restore it from a backup, or roll back to a version that is intact"


def package(path: str, model_digest: str) -> Path:
    """A package on this machine, its bytes checked against its digest.

    `path`: a folder, or the `models:/m-...` URI of a logged model; a copy of it that has changed is
    fetched once more. Of a logged model the files around the package, by which MLflow serves it, are checked
    too. One that holds an adapter is put together with its base, and kept for a while. Raises RegistryError
    when a digest differs.
    """
    logged = path.startswith("models:/")

    def folder() -> Path:
        return fetch(path) / pyfunc.PACKAGE if logged else Path(path)

    if logged and adapter.is_adapter(folder()):
        return _kept(path, model_digest)
    if not check_or_refetch(path, lambda: digest.of_folder(folder()) == model_digest):
        raise RegistryError(
            f"{path} is not what was judged: its files' digest is not {model_digest[:16]}...; {INTACT}"
        )
    if logged:
        _require_served(path, _served_digest(path), of_package=False)
    return folder()


def write_whole(uri: str, model_digest: str, out: Path, scratch: Path) -> None:
    """Write the judged package to the new folder `out`, of a logged model that holds an adapter.

    Adapter, base and what they give are checked. `scratch`: of the process that adds them up. Raises
    RegistryError when anything differs.
    """
    served = _served_digest(uri)
    if not served:
        raise RegistryError(f"{uri}: MLflow holds no digest of this adapter's files; {INTACT}")
    _require_served(uri, served, of_package=True)
    package = fetch(uri) / pyfunc.PACKAGE
    base = base_of(package)
    whole_model.make(package, checked_base(base), out, scratch)
    if digest.of_folder(out) != model_digest:
        shutil.rmtree(out)
        raise RegistryError(
            f"{uri} on {base.name} is not what was judged: the digest of what they give is not "
            f"{model_digest[:16]}...; {INTACT}"
        )


def base_of(package: Path) -> StoredBase:
    """The base that a package names. Raises RegistryError where that cannot be read."""
    try:
        return adapter.base_of(package)
    except BaseChanged as error:
        raise RegistryError(str(error)) from error


def checked_base(base: StoredBase) -> Path:
    """A stored base on this machine, each file checked. Raises RegistryError when one differs."""
    if not check_or_refetch(base.uri, lambda: not adapter.faults_of(base, fetch(base.uri))):
        try:
            adapter.require_base(base, fetch(base.uri))
        except BaseChanged as error:
            raise RegistryError(str(error)) from error
    return fetch(base.uri)


def _kept(uri: str, model_digest: str) -> Path:
    work = workspace.work_folder() / WHOLE / model_digest[:16]
    work.mkdir(parents=True, exist_ok=True)
    folder, partial = work / "package", work / "partial"
    busy = RegistryError(f"another process makes the model in {work}; wait for it")
    with hold_lock(work / "made.lock", whole_model.LOCK_SECONDS, busy):
        _require_served(uri, _served_digest(uri), of_package=True)
        if not (folder.is_dir() and digest.of_folder(folder) == model_digest):
            for old in (folder, partial):
                shutil.rmtree(old, ignore_errors=True)
            write_whole(uri, model_digest, partial, work / "step")
            partial.rename(folder)
        os.utime(work)  # in use
    return folder


def _require_served(uri: str, served: dict[str, str], of_package: bool) -> None:
    """`of_package`: whether the content of the package's files is checked too."""

    def faults() -> list[str]:
        return pyfunc.Check(fetch(uri), served, package=of_package).finish()

    if served and not check_or_refetch(uri, lambda: not faults()):
        raise RegistryError(
            f"{uri} is not what was registered: {'; '.join(faults())}; MLflow would serve it otherwise than "
            f"it was judged. {INTACT.capitalize()}"
        )


def _served_digest(uri: str) -> dict[str, str]:
    """The digest of all that MLflow serves, by who holds it; empty for models of before there was one."""
    import mlflow
    from mlflow.exceptions import MlflowException

    model_id = uri.removeprefix("models:/")
    try:
        digests = mlflow.MlflowClient().get_logged_model(model_id).tags
    except MlflowException as error:
        raise RegistryError(f"MLflow's logged model {model_id} cannot be read: {error}") from error
    tag = pyfunc.SERVED_DIGEST
    return {f"MLflow's logged model {model_id}": digests[tag]} if tag in digests else {}
