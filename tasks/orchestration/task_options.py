"""What every step's Prefect task shares: no cache of Prefect's, retries only where one can help."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from tasks.contracts.errors import ChildFailed, PrecisError, RegistryError

PASSING = (ChildFailed, RegistryError)


def _may_help(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """A dropped connection or a killed child may pass; a mistake in the input stays one."""
    error = state.result(raise_on_failure=False)
    return type(error) in PASSING or not isinstance(error, PrecisError)


# Steps remember their results in MLflow (tracking.py); Prefect's default cache key holds the run id.
STEP: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 1,
    "retry_delay_seconds": 5,
    "retry_condition_fn": _may_help,
}
