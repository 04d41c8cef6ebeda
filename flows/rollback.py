"""Roll back: put an earlier champion back, through the same claim as a promotion."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.states import Completed, Failed

from flows.run import bare_run
from tasks.errors import PrecisError
from tasks.register.task import restore


@flow(name="rollback", flow_run_name="{name}")
def rollback(name: str, to: int | None = None) -> Any:
    """Make version `to` champion again (default: the one before the current champion)."""
    try:
        with bare_run(name):
            version, message = restore(name, to)
    except PrecisError as error:
        return Failed(message=str(error), data=error)
    return Completed(name="ROLLED_BACK", message=message, data=version)
