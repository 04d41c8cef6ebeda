"""Prefect's concurrency limits: one retrain of a model at a time, and a number of GPU steps.

They keep runs from slowing each other down. That only one of two challengers can succeed a champion is
ensured by the registry (register/claims.py), with or without these limits. A holder that dies loses its
slot when its lease ends, about a minute later.

Prefect's own `prefect.concurrency.sync.concurrency` was considered. It stops renewing a lease after three
failed tries, so a server that is away for a minute costs a running holder its slot for good; here the
lease is taken again (tests/e2e/test_slots.py).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_run_logger

from tasks.contracts.errors import PrecisError
from tasks.orchestration import waiting_runs

LEASE_SECONDS = 60.0  # the shortest that Prefect allows
RENEW_SECONDS = 20.0
LOOK_SECONDS = 10.0  # between two looks at runs that do not want to wait
POLL_SECONDS = 2.0
LOCKED = 423


class Busy(Exception):
    """Another run holds the slot."""


@contextlib.contextmanager
def sole_retrain(name: str, wait: bool) -> Iterator[None]:
    """Hold the one retrain slot of a registered model; raises Busy if it is taken and not `wait`.

    The limit is on the server, so it covers all of its deployments and machines. A run that a worker
    started does not wait here: it ends its process, and is started again (waiting_runs.py).
    """
    limit = f"precis-retrain-{name}"
    _create(limit)
    # Its own killed predecessor may still hold the slot; and people have answered a run that was suspended.
    is_retry = waiting_runs.ran_before()
    with _slots(
        limit,
        1,
        wait or is_retry,
        on_busy=lambda: waiting_runs.requeue(name),
        while_held=lambda: waiting_runs.end_those_that_do_not_wait(name),
        when_released=lambda: waiting_runs.start_first(name),
    ):
        yield


@contextlib.contextmanager
def gpu(count: int = 1, spread: int = 1) -> Iterator[None]:
    """Hold GPU slots of the limit that PRECIS_GPU_LIMIT names; none if it is not set.

    `spread`: how many GPUs one model is placed on; if the limit is lower, all of its slots are held.
    """
    limit = os.environ.get("PRECIS_GPU_LIMIT")
    if not limit:
        yield
        return
    slots = max(count, min(spread, _limit_of(limit))) if spread > 1 else count
    with _slots(limit, slots, wait=True):
        yield


def _limit_of(limit: str) -> int:
    """How many slots there are; 1 if there is no such limit, which `_take` reports."""
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectNotFound):
        return int(client.read_global_concurrency_limit_by_name(limit).limit)
    return 1


@contextlib.contextmanager
def _slots(
    limit: str,
    count: int,
    wait: bool,
    on_busy: Callable[[], None] = lambda: None,
    while_held: Callable[[], None] = lambda: None,
    when_released: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Hold `count` slots while the block runs; `while_held` is called from a thread, now and then."""
    lease = _Lease(limit, count, _acquire(limit, count, wait, on_busy))
    done = threading.Event()
    renewal = threading.Thread(
        target=copy_context().run, args=(lease.renew_until, done, while_held), daemon=True
    )
    renewal.start()
    try:
        yield
    finally:
        done.set()
        renewal.join(RENEW_SECONDS)
        lease.release()
        when_released()


def _acquire(limit: str, count: int, wait: bool, on_busy: Callable[[], None]) -> UUID:
    logged = False
    while (lease_id := _take(limit, count)) is None:
        if not wait:
            raise Busy(limit)
        on_busy()
        if not logged:
            get_run_logger().info(f"no free slot of {limit!r}; waiting for one")
            logged = True
        time.sleep(POLL_SECONDS)
    return lease_id


def _take(limit: str, count: int) -> UUID | None:
    """A lease on the slots; None when they are taken. Raises PrecisError if they can never be had."""
    with get_client(sync_client=True) as client:
        try:
            available = client.read_global_concurrency_limit_by_name(limit).limit
            if count > available:
                raise PrecisError(
                    f"{count} slots of {limit!r} are needed (training.devices or "
                    f"evaluation.devices), and it has {available}: a run would wait forever; raise it "
                    f"(prefect gcl update {limit} --limit {count}), or take fewer devices"
                )
            answer = client.increment_concurrency_slots_with_lease(
                [limit], count, "concurrency", LEASE_SECONDS
            )
        except ObjectNotFound:
            raise PrecisError(
                f"the Prefect server has no limit {limit!r}; create it (prefect gcl create {limit} "
                "--limit 1), or name another in PRECIS_GPU_LIMIT"
            ) from None
        except PrefectHTTPStatusError as error:
            if error.response.status_code == LOCKED:
                return None
            raise
    return UUID(answer.json()["lease_id"])


class _Lease:
    """A lease on slots, renewed from a thread, and taken again if the server has ended it."""

    def __init__(self, limit: str, count: int, lease_id: UUID) -> None:
        self.limit, self.count, self.id = limit, count, lease_id

    def renew_until(self, done: threading.Event, while_held: Callable[[], None]) -> None:
        """Renew it until done, even if the server is away for a while."""
        renewed = time.monotonic()
        while not done.wait(min(RENEW_SECONDS, LOOK_SECONDS)):
            while_held()
            if time.monotonic() - renewed < RENEW_SECONDS:
                continue
            renewed = time.monotonic()
            # Whatever the server says now, it is asked again next time.
            with contextlib.suppress(httpx.HTTPError, RuntimeError, PrecisError):
                self._renew()

    def _renew(self) -> None:
        try:
            with get_client(sync_client=True) as client:
                client.renew_concurrency_lease(self.id, LEASE_SECONDS)
        except PrefectHTTPStatusError as error:
            if error.response.status_code not in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
                raise  # the lease may still be valid
            self.id = _take(self.limit, self.count) or self.id

    def release(self) -> None:
        """Give the slots back."""
        try:
            with get_client(sync_client=True) as client:
                client.release_concurrency_slots_with_lease(self.id)
        except (httpx.HTTPError, RuntimeError) as error:
            get_run_logger().warning(
                f"a slot of {self.limit!r} could not be released; it is free when its lease ends: {error}"
            )


def _create(limit: str) -> None:
    """Make a limit of one slot, unless it is there; another run may be making it at the same time."""
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectAlreadyExists):
        client.upsert_global_concurrency_limit_by_name(limit, 1)
