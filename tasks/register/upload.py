"""Upload a model folder to MLflow's artifact store, reading its bytes at most once.

A store on the same disk gets hard links to the weights: it then holds the very file that was judged.
That is safe since nothing writes into a package once it was merged: another merge makes new files, and
linked files lose their write permission. Small files, which people edit in place, are copied, and so
are the targets of symbolic links: they are not the package's own.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LINKED_BYTES = 2**20
PARALLEL_UPLOADS = 4  # as many processes as `mlflow server` has by default
READ_ONLY = 0o444


def upload_folder(folder: Path, location: str) -> None:
    """Store the files of `folder` at `location`, the artifact location of a logged model.

    Raises MlflowException or OSError.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if is_local_uri(location, is_tracking_or_registry_uri=False):
        root = Path(local_file_uri_to_path(location))
        for file in files:
            _store_file(file, root / file.relative_to(folder))
        return
    _send(get_artifact_repository(location), folder, files)


def _store_file(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    own_weights = not file.is_symlink() and file.stat().st_size >= LINKED_BYTES
    if own_weights and _link(file, target):
        return
    shutil.copyfile(file, target)


def _link(file: Path, target: Path) -> bool:
    try:
        # First: a file that cannot be made read-only is not linked.
        file.chmod(file.stat().st_mode & READ_ONLY)
        os.link(file, target)
    except OSError:  # another user's file, another file system, or one without hard links
        return False
    return True


def _send(repository: Any, folder: Path, files: list[Path]) -> None:
    """Several files at once: an HTTP upload keeps one core busy on each side."""

    def send(file: Path) -> None:
        subfolder = file.parent.relative_to(folder).as_posix()
        repository.log_artifact(str(file), None if subfolder == "." else subfolder)

    with ThreadPoolExecutor(PARALLEL_UPLOADS) as pool:
        uploads = [pool.submit(send, file) for file in files]
        try:
            for upload in uploads:
                upload.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
