"""What kills leave behind, removed by the next run of the model: after a day, and only what precis made.

A logged model is PENDING until it is whole; a killed run leaves it so. Its scratch folder (links to the
weights) and what was uploaded stay too. Folders in the machine's temporary directory are named and locked
by tasks.processes.workspace.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from tasks.processes import workspace
from tasks.register.adapter_version import EXPERIMENT
from tasks.register.log_model import DIGEST_TAG
from tasks.register.version_tags import BASE_DIGEST

DAY_SECONDS = 86400.0


def remove(client: Any, experiment_id: str) -> None:
    """Remove this experiment's abandoned logged models, and this machine's abandoned folders.

    Never fails a run: what cannot be removed is logged, and left to the next one.
    """
    oldest = time.time() - DAY_SECONDS
    try:
        abandoned = _abandoned(client, experiment_id, DIGEST_TAG, oldest)
        if bases := client.get_experiment_by_name(EXPERIMENT):
            abandoned += _abandoned(client, bases.experiment_id, BASE_DIGEST, oldest)
        for model in abandoned:
            client.delete_logged_model(model.model_id)
            _delete_files(model.artifact_location)
            shutil.rmtree(_served() / model.model_id, ignore_errors=True)
            _log(f"logged model {model.model_id}, which a run left {model.status}, was deleted")
    except MlflowException as error:
        _log(f"logged models that killed runs left could not be deleted: {error}")
    for folder in _served().glob(
        "m-*"
    ):  # of models that the registry no longer lists, or that are whole
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < oldest and not _in_use(client, folder.name):
                shutil.rmtree(folder, ignore_errors=True)
    for folder in workspace.remove_abandoned(oldest):
        _log(f"{folder}, which a killed process left, was removed")


def _abandoned(client: Any, experiment_id: str, tag: str, oldest: float) -> list[Any]:
    """Models that precis began to log before `oldest`, that never became READY, and whose run has ended.

    `tag`: one that precis gives them.
    """
    query = f"tags.`{tag}` != '' AND creation_timestamp < {int(oldest * 1000)}"
    found: list[Any] = []
    token = None
    while True:
        page = client.search_logged_models([experiment_id], query, page_token=token)
        found += [
            m
            for m in page
            if m.status in ("PENDING", "FAILED") and not _running(client, m.source_run_id)
        ]
        token = page.token
        if not token:
            return found


def _running(client: Any, run_id: str | None) -> bool:
    try:
        return bool(run_id and client.get_run(run_id).info.status == "RUNNING")
    except MlflowException:  # the run is gone
        return False


def _in_use(client: Any, model_id: str) -> bool:
    try:
        model = client.get_logged_model(model_id)
    except MlflowException:
        return False
    return model.status == "PENDING" and _running(client, model.source_run_id)


def _delete_files(location: str) -> None:
    """What was uploaded of it. A server may not allow that: `mlflow gc` then does it."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        get_artifact_repository(location).delete_artifacts()
    except Exception as error:  # noqa: BLE001 - of any store's own library
        _log(f"{location} could not be deleted ({error}); `mlflow gc` deletes it")


def _served() -> Path:
    return workspace.work_folder() / "served"


def _log(message: str) -> None:
    logging.getLogger(__name__).info(message)
