"""Pull a registered model: a verified copy of its package, for an engine or a machine of its own."""

from __future__ import annotations

from pathlib import Path

from tasks.contracts.errors import RegistryError
from tasks.contracts.units import GIB
from tasks.register.task import pull as pull_package
from tasks.tracking import connection


def pull(model: str, folder: Path) -> str:
    """Copy what `model` names to `folder`; a sentence on what came of it. Raises RegistryError."""
    if connection.nothing_yet():
        raise RegistryError(
            f"no model {model!r}: nothing was ever registered in {connection.shown_uri()}; go to the "
            "folder where the runs were made, or set MLFLOW_TRACKING_URI"
        )
    pulled = pull_package(connection.connect(), model, folder)
    checked = f"{pulled.size_bytes / GIB:.2f} GiB, digest {pulled.digest[:16]}... as registered"
    if not pulled.files and not pulled.kept:
        return f"{folder} holds {pulled.title} already: {checked}"
    earlier = f", {pulled.kept} of them by an earlier pull" if pulled.kept else ""
    count = pulled.files + pulled.kept
    return f"{pulled.title} is in {folder}: {count} files{earlier}, {checked}"
