"""A run's artifacts as they are in the store now, past the copies that artifacts.fetch keeps."""

from __future__ import annotations

from pathlib import Path

from mlflow.exceptions import MlflowException

from tasks.contracts.errors import StoreUnavailable
from tasks.tracking import artifacts


def fetch_fresh(run_id: str, name: str, scratch: Path) -> Path | None:
    """A fresh copy of a run's artifact, not one that this machine kept; None where there is none.

    Raises StoreUnavailable when the store cannot be read.
    """
    try:
        repository = artifacts.repository_of(run_id)
        parent, _, _ = name.rpartition("/")
        if name not in {entry.path for entry in repository.list_artifacts(parent or None)}:
            return None
        target = scratch / run_id
        target.mkdir(parents=True, exist_ok=True)
        return Path(repository.download_artifacts(name, str(target)))
    except (MlflowException, OSError) as error:
        raise StoreUnavailable(f"runs:/{run_id}/{name} cannot be read: {error}") from error
