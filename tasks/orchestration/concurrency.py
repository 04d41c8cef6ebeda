"""Prefect's limits on what runs at once: one retrain of a model, and so many GPU steps.

They keep runs from wasting each other's time; that only one of two challengers can succeed a champion
is the registry's own affair (register/claims.py) and holds without any of this. A holder that dies
loses its slot when its lease ends, a minute or so later. Prefect's own `concurrency` gives a lease up
after a few failed renewals, and with it the slot, while the holder works on; here a server that was
away is asked again, and a lease that ended meanwhile is taken anew.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_run_logger

from tasks.contracts.errors import PrecisError

LEASE_SECONDS = 60.0  # Prefect's least
RENEW_SECONDS = 20.0
ASK_SECONDS = 2.0
LOCKED, CONFLICT = 423, 409


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
    with _held(limit, 1, wait or again):
        yield


@contextlib.contextmanager
def gpu(count: int = 1, spread: int = 1) -> Iterator[None]:
    """Hold GPU slots of the limit that PRECIS_GPU_LIMIT names; none is held where it names none.

    `spread`: how many GPUs one model is put on; where there are fewer slots, all of them are held.
    """
    limit = os.environ.get("PRECIS_GPU_LIMIT")
    if not limit:
        yield
        return
    wanted = max(count, min(spread, _most(limit))) if spread > 1 else count
    with _held(limit, wanted, wait=True):
        yield


def _most(limit: str) -> int:
    """How many slots there are; one where there is no such limit, of which `_take` has more to say."""
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectNotFound):
        return int(client.read_global_concurrency_limit_by_name(limit).limit)
    return 1


@contextlib.contextmanager
def _held(limit: str, count: int, wait: bool) -> Iterator[None]:
    lease = [_acquire(limit, count, wait)]
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(limit, count, lease, done), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join(RENEW_SECONDS)
        _release(lease[0])


def _acquire(limit: str, count: int, wait: bool) -> UUID:
    said = False
    while (lease := _take(limit, count)) is None:
        if not wait:
            raise Busy(limit)
        if not said:
            get_run_logger().info(f"no free slot of {limit!r}; waiting for one")
            said = True
        time.sleep(ASK_SECONDS)
    return lease


def _take(limit: str, slots: int) -> UUID | None:
    """A lease on the slots; None when they are taken."""
    with get_client(sync_client=True) as client:
        try:
            most = client.read_global_concurrency_limit_by_name(limit).limit
            if slots > most:
                raise PrecisError(
                    f"{slots} slots of {limit!r} are wanted (training.devices or "
                    f"evaluation.devices), and it has {most}: a run would wait forever; raise it "
                    f"(prefect gcl update {limit} --limit {slots}), or take fewer devices"
                )
            answer = client.increment_concurrency_slots_with_lease(
                [limit], slots, "concurrency", LEASE_SECONDS
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


def _keep(limit: str, count: int, lease: list[Any], done: threading.Event) -> None:
    """Renew the lease until done, whatever the server is doing meanwhile."""
    while not done.wait(RENEW_SECONDS):
        # A server that is away is asked again next time; only its answer can mean a lost lease.
        with contextlib.suppress(httpx.TransportError, RuntimeError):
            try:
                with get_client(sync_client=True) as client:
                    client.renew_concurrency_lease(lease[0], LEASE_SECONDS)
            except PrefectHTTPStatusError:
                if taken := _take(limit, count):
                    lease[0] = taken


def _release(lease: UUID) -> None:
    try:
        with get_client(sync_client=True) as client:
            client.release_concurrency_slots_with_lease(lease)
    except (httpx.HTTPError, RuntimeError) as error:  # it frees itself when the lease ends
        get_run_logger().warning(f"a slot could not be given back, its lease will end: {error}")


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
