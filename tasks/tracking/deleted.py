"""An MLflow run or experiment that was deleted while a flow run used it: told with the way back."""

from __future__ import annotations

from typing import Any

from mlflow.exceptions import MlflowException

from tasks.contracts.errors import RegistryError

_RETRY = "retry this run: it continues where it stopped"


def with_way_back(run: Any, name: str, error: Exception) -> Exception:
    """The error that tells a user what MLflow refused, and that its experiment or run was deleted."""
    refused = isinstance(error, MlflowException)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MlflowException):
        cause = cause.__cause__
    if cause is None:
        return error
    message = str(error).strip()
    if refused:
        message = f"MLflow did not do what run {run.id} of {name!r} asked for: {message}"
    fix = _deleted(run, name)
    if fix is None:
        return RegistryError(f"{message}\n{_RETRY}") if refused else error
    return RegistryError(f"{message}\n{fix}; then {_RETRY}")


def _deleted(run: Any, name: str) -> str | None:
    """That the run or its experiment was deleted meanwhile, and how to restore it; None if neither was."""
    try:
        experiment = run.client.get_experiment(run.experiment_id)
        stage = run.client.get_run(run.id).info.lifecycle_stage
    except MlflowException:
        return None  # MLflow does not answer, or `mlflow gc` removed them
    if experiment.lifecycle_stage == "deleted":
        return (
            f"MLflow experiment {name!r} was deleted while this run used it; restore it (mlflow experiments "
            f"restore --experiment-id {run.experiment_id})"
        )
    if stage == "deleted":
        return (
            f"MLflow run {run.id} was deleted while it was running; restore it (mlflow runs restore --run-id "
            f"{run.id})"
        )
    return None
