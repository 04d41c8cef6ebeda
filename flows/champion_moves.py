"""Tell Prefect of every move of the champion's alias, once: the event `precis.champion.changed`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from tasks.register.task import Move, Why, note_told, untold_moves
from tasks.tracking import connection

CHANGED = "precis.champion.changed"
Log = Callable[[str], None]


def tell(name: str, log: Log, back: Why = "by hand", flow_run_id: str | None = None) -> None:
    """Send an event for each move that was not told yet, and note that it was.

    `back`: why an alias that someone had moved is on the last promotion again. What fails is logged, and
    the next process that looks sends the event: the move itself stands. Nobody waits long here.
    """
    from flows import notify

    try:
        with connection.first_request() as client:
            found = untold_moves(client, name, back)
        for move in found:
            if not notify.is_known(move.id):  # else it was sent, and could not be noted
                notify.send(CHANGED, name, payload(move), flow_run_id, move.id)
            with connection.first_request() as client:
                note_told(client, move)
    except Exception as error:  # noqa: BLE001 - neither a promotion nor serving ends with Prefect
        log(f"{name}: the event {CHANGED} was not sent, or not noted as sent: {error}")


def payload(move: Move) -> dict[str, Any]:
    """What the event says; docs/deployments.md lists it."""
    before, after = move.before, move.after
    return {
        "name": move.name,
        "from_version": before.version if before else None,
        "from_digest": (before.digest or None) if before else None,
        "to_version": after.version if after else None,
        "to_digest": (after.digest or None) if after else None,
        "why": move.why,
        "run": move.run,
        "headline": move.headline,
    }


@contextlib.contextmanager
def told(name: str, log: Log, flow: str, flow_run_id: str) -> Iterator[None]:
    """Tell what has moved before a flow's work, and what moved by it, also where it fails after that."""
    tell(name, log, flow_run_id=flow_run_id)
    back: Why = "rollback" if flow == "rollback" else "by hand"
    try:
        yield
    except Exception:
        tell(name, log, back, flow_run_id)
        raise
    tell(name, log, back, flow_run_id)


def notice(name: str, log: Log) -> None:
    """The same where no flow runs. Without PREFECT_API_URL nothing is done, and Prefect not imported."""
    if os.environ.get("PREFECT_API_URL"):
        tell(name, log)
