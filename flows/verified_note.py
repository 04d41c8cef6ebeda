"""Note in the registry where a version was verified; it goes on without where that cannot be written."""

from __future__ import annotations

from collections.abc import Callable

from tasks.register.task import Verified, add_verified
from tasks.tracking import connection


def add(name: str, number: int, digest: str, noted: Verified, log: Callable[[str], None]) -> None:
    """Note it on version `number`, if that still has the model of this digest; a failure is logged.

    The registry may be read with a right to read alone, or be away.
    """
    try:
        add_verified(connection.connect(), name, number, digest, noted)
    except Exception as error:  # noqa: BLE001 - see above
        log(f"{name} v{number}: where it was verified could not be noted: {error}")
