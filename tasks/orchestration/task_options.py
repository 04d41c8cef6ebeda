"""Options of every step's Prefect task: no Prefect cache, and a retry only if it can help."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from tasks.contracts.errors import ChildFailed, PrecisError, RegistryError

TRANSIENT = (ChildFailed, RegistryError)


def _retry_may_help(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """A dropped connection or a killed process may not recur; a mistake in the input will."""
    error = state.result(raise_on_failure=False)
    return type(error) in TRANSIENT or not isinstance(error, PrecisError)


# Steps store their results in MLflow (tracking/step_cache.py); Prefect's default cache key holds the run id.
STEP: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 1,
    "retry_delay_seconds": 5,
    "retry_condition_fn": _retry_may_help,
}
