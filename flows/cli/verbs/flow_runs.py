"""Running a flow in this process, for the verbs that do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


@contextlib.contextmanager
def prefect_api() -> Iterator[None]:
    """A Prefect API to run a flow against: the configured one, or an embedded server."""
    from flows.stack import embedded

    with embedded.server() as wait_until_ready:  # imports Prefect
        import flows.retrain  # noqa: F401 - takes seconds, as does the server's start

        wait_until_ready()
        from prefect import tags

        from flows.run_context import OURS

        with tags(OURS):  # as deployed runs are
            yield


def result_of(state: State[Any]) -> Any:
    """What the flow returned; a failed one's message goes to standard error, and the exit status is 1."""
    if not state.is_completed():
        print(f"precis: {state.message}", file=sys.stderr)
        raise typer.Exit(1)
    return state.result()
