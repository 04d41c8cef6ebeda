"""A laid-out model into MLflow's artifact store, in one pass over its bytes at most.

On this disk weights are linked: the store then holds the very file that was judged. That is safe
since nothing writes into a package once it was merged: a merge over it makes new files, and what is
linked loses its write permission. Small files, which people edit in place, are copied, and so is what
a package only points at: it is someone else's.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LARGE_BYTES = 2**20
AT_ONCE = 4  # as many processes as `mlflow server` has by default
READ_ONLY = 0o444


def put(folder: Path, location: str) -> None:
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
            _place(file, root / file.relative_to(folder))
        return
    _send(get_artifact_repository(location), folder, files)


def _place(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    ours = not file.is_symlink() and file.stat().st_size >= LARGE_BYTES
    if ours and _linked(file, target):
        return
    shutil.copyfile(file, target)


def _linked(file: Path, target: Path) -> bool:
    try:
        # First: what may not be protected is not shared either.
        file.chmod(file.stat().st_mode & READ_ONLY)
        os.link(file, target)
    except OSError:  # someone else's file, another file system, or one without links
        return False
    return True


def _send(repository: Any, folder: Path, files: list[Path]) -> None:
    """Several files at once: one stream of HTTP keeps one core busy here, and one there."""

    def send(file: Path) -> None:
        place = file.parent.relative_to(folder).as_posix()
        repository.log_artifact(str(file), None if place == "." else place)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        sending = [pool.submit(send, file) for file in files]
        try:
            for sent in sending:
                sent.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
