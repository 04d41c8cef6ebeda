"""Events of a server to Prefect, where one is configured, so that its automations can act on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flows.serve.engines import say


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
