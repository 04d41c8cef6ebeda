"""Prefect's limits on what runs at once: one retrain of a model, and so many GPU steps.

They keep runs from wasting each other's time; that only one of two challengers can succeed a champion
is the registry's own affair (register/claims.py) and holds without any of this. A holder that dies
loses its slot when its lease ends, a minute later.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_run_logger

from tasks.errors import PrecisError

LEASE_SECONDS = 60.0  # Prefect's least
CONFLICT = 409
KNOCK_SECONDS = 1.0
WAIT_MOST_SECONDS = 7 * 24 * 3600.0


class Busy(Exception):
    """Another run holds the slot."""


@contextlib.contextmanager
def sole_retrain(name: str, wait: bool) -> Iterator[None]:
    """Hold the one retrain slot of a registered model; raises Busy if it is taken and not `wait`.

    The limit is the server's, so it covers all its deployments and machines.
    """
    limit = f"precis-retrain-{name}"
    _ensure(limit)
    again = _run_count() > 1  # a retry may find the slot still held by its own dead predecessor
    with _held(limit, 1, WAIT_MOST_SECONDS if wait or again else 0.0):
        yield


@contextlib.contextmanager
def gpu(count: int = 1) -> Iterator[None]:
    """Hold GPU slots of the limit that PRECIS_GPU_LIMIT names; none is held where it names none."""
    limit = os.environ.get("PRECIS_GPU_LIMIT")
    if not limit:
        yield
        return
    try:
        with _held(limit, count, WAIT_MOST_SECONDS):
            yield
    except Busy:
        raise PrecisError(
            f"no GPU slot of limit {limit!r} became free in a week; see `prefect gcl inspect {limit}`"
        ) from None


@contextlib.contextmanager
def _held(limit: str, count: int, wait_seconds: float) -> Iterator[None]:
    # Asked first, because Prefect logs every refusal as an error of its own.
    if _is_taken(limit, count):
        if not wait_seconds:
            raise Busy(limit)
        get_run_logger().info(f"no free slot of {limit!r}; waiting for one")
    # The body must not run inside our except clause: its own TimeoutErrors are not ours.
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_slot(limit, count, wait_seconds or KNOCK_SECONDS))
        except TimeoutError:
            raise Busy(limit) from None
        yield


def _is_taken(limit: str, count: int) -> bool:
    with get_client(sync_client=True) as client:
        found = client.read_global_concurrency_limit_by_name(limit)
    return found.active_slots + count > found.limit


def _slot(
    limit: str, count: int, timeout_seconds: float
) -> contextlib.AbstractContextManager[None]:
    return concurrency(
        limit,
        occupy=count,
        timeout_seconds=timeout_seconds,
        lease_duration=LEASE_SECONDS,
        strict=True,
        # A server away for a while must not end hours of training.
        raise_on_lease_renewal_failure=False,
    )


def _ensure(limit: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.upsert_global_concurrency_limit_by_name(limit, 1)
        except PrefectHTTPStatusError as error:
            if error.response.status_code != CONFLICT:  # another run has just made it
                raise


def _run_count() -> int:
    context = FlowRunContext.get()
    return context.flow_run.run_count if context and context.flow_run else 1
