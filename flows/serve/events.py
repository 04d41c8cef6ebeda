"""Events of a server to Prefect, where one is configured, so that its automations can act on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flows import champion_moves, verified_note
from flows.serve.engines import Engine, say
from flows.serve.plan import ServePlan
from tasks.register.task import verified_now


def teller(name: str) -> Callable[[str, dict[str, Any]], None]:
    """A function that sends an event about the model `name`; a failure is a line of the log.

    Without PREFECT_API_URL it does nothing: Prefect, which takes seconds, is not imported.
    """

    def tell(event: str, payload: dict[str, Any]) -> None:
        if not os.environ.get("PREFECT_API_URL"):
            return
        try:
            from flows import notify

            notify.send(event, name, payload)
        except Exception as error:  # noqa: BLE001 - serving must not end with Prefect
            say(f"{name}: the event {event} was not sent: {error}")

    return tell


def noticer(plan: ServePlan) -> Callable[[], None]:
    """A function that tells of the champion's moves; nothing where another alias or a version is served."""
    return (
        (lambda: champion_moves.notice(plan.name, say)) if plan.follows_champion else lambda: None
    )


def noter(name: str) -> Callable[[Engine, int], None]:
    """A function that notes in the registry that an engine here gave stored texts back."""

    def note(engine: Engine, texts: int) -> None:
        target = engine.target
        noted = verified_now("precis serve", texts, str(engine.info.get("engine")))
        verified_note.add(name, target.number, target.digest, noted, say)

    return note
