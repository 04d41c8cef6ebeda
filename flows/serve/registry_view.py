"""What the registry says: which version an alias names, its checked package, its stored rows."""

from __future__ import annotations

import shutil
from pathlib import Path

from flows.serve.engines import Target
from tasks.contracts import digest
from tasks.contracts.errors import RegistryError
from tasks.contracts.records import Prediction
from tasks.register import task as register
from tasks.tracking import connection


class RegistryView:
    """Reads MLflow; each call may wait for it, so none belongs in an event loop."""

    def __init__(self, reference: str, packages: Path) -> None:
        """`packages`: the folder where this server alone keeps what it pulls."""
        self.reference, self.packages = reference, packages

    def target(self) -> Target:
        """The version that the reference names now. Raises RegistryError."""
        if connection.nothing_yet():
            raise RegistryError(
                f"no model {self.reference!r}: nothing was ever registered in {connection.shown_uri()}; go "
                "to the folder where the runs were made, or set MLFLOW_TRACKING_URI"
            )
        path = self.reference.removeprefix("models:/")
        if path != self.reference and "@" not in path and "/" not in path:
            raise RegistryError(
                f"{self.reference} is a logged model, which nothing moves; write NAME, NAME@ALIAS or "
                "NAME/VERSION"
            )
        model = register.resolve(connection.connect(), self.reference)
        return Target(model.uri, model.digest, model.title, int(model.title.rpartition(" v")[2]))

    def package(self, target: Target) -> Path:
        """Its package on this machine, each byte checked. Raises RegistryError."""
        folder = self.packages / target.digest[:32]
        reference = f"{target.title.rpartition(' v')[0]}/{target.number}"
        if folder.exists():
            if digest.of_folder(folder) == target.digest:
                return folder
            shutil.rmtree(folder)  # of this server alone, and no longer what was pulled
        register.pull(connection.connect(), reference, folder)
        return folder

    def rows(self, target: Target, count: int) -> list[Prediction]:
        """The first `count` rows that the version was judged by; empty where its run is gone."""
        if not count:
            return []
        name = target.title.rpartition(" v")[0]
        return register.stored_rows(connection.connect(), name, target.number)[:count]

    def forget_but(self, kept: set[str]) -> None:
        """Remove packages of other digests."""
        for folder in self.packages.glob("*"):  # empty where somebody removed it
            if folder.is_dir() and folder.name not in {digest[:32] for digest in kept}:
                shutil.rmtree(folder, ignore_errors=True)
