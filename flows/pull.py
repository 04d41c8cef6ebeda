"""Pull a registered model: a verified copy of its package, for an engine or a machine of its own."""

from __future__ import annotations

from pathlib import Path

from tasks.contracts.errors import RegistryError
from tasks.contracts.units import GIB
from tasks.register.task import Pulled, pull_adapter
from tasks.register.task import pull as pull_package
from tasks.tracking import connection


def pull(model: str, folder: Path, adapter: bool = False) -> str:
    """Copy what `model` names to `folder`; a sentence on what came of it. Raises RegistryError.

    `adapter`: its adapter and the base that it belongs to, each in a folder of its own there.
    """
    if connection.nothing_yet():
        raise RegistryError(
            f"no model {model!r}: nothing was ever registered in {connection.shown_uri()}; go to the "
            "folder where the runs were made, or set MLFLOW_TRACKING_URI"
        )
    if adapter:
        both = pull_adapter(connection.connect(), model, folder)
        where = both.adapter.folder
        return "\n".join(
            [
                _told(both.adapter, folder / where.name, "adapter "),
                _told(both.base, folder / both.base.folder.name, "base "),
            ]
        )
    return _told(pull_package(connection.connect(), model, folder), folder)


def _told(pulled: Pulled, folder: Path, kind: str = "") -> str:
    checked = f"{pulled.size_bytes / GIB:.2f} GiB, digest {pulled.digest[:16]}... as registered"
    if not pulled.files and not pulled.kept:
        return f"{folder} holds {kind}{pulled.title} already: {checked}"
    earlier = f", {pulled.kept} of them by an earlier pull" if pulled.kept else ""
    count = pulled.files + pulled.kept
    return f"{kind}{pulled.title} is in {folder}: {count} files{earlier}, {checked}"
