"""A flow run's name: what somebody typed stays, what Prefect drew becomes the model's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.names import generate_slug

from flows import run_name


@flow(flow_run_name=run_name.typed_or_model)
def retrains(recipe: dict[str, str]) -> bool:
    """As the flows that take a recipe; what `announce` asks."""
    return run_name.typed()


@flow(flow_run_name=run_name.typed_or_rollback)
def rolls_back(name: str) -> bool:
    """As the flow rollback."""
    return run_name.typed()


@pytest.fixture
def api(prefect_server: str) -> Iterator[None]:
    """A real server for these runs."""
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        yield


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("after the spring clean", True),
        ("new-data", True),
        ("try 2", True),
        ("demo with more rows", True),
        ("demo 1f0c22aa REJECT again", True),
        (None, False),  # Prefect draws one
        ("demo", False),  # of an earlier try
        ("demo 1f0c22aa REJECT", False),
        ("demo 1f0c22aa WAITS_FOR_APPROVAL", False),
    ],
)
def test_a_typed_name_is_kept(name: str | None, kept: bool) -> None:
    """All others are the model's until the verdict is known."""
    parameters = {"recipe": {"name": "demo"}}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(retrains, parameters=parameters, name=name)
        typed = run_flow(retrains, flow_run=run, parameters=parameters)
        shown = client.read_flow_run(run.id).name
    assert typed is kept
    if kept:
        assert shown == name
    else:
        assert shown in ("demo", name)


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize(
    ("name", "shown"),
    [(None, "rollback demo"), ("oh dear", "oh dear"), ("rollback please", "rollback please")],
)
def test_a_rollback_too(name: str | None, shown: str) -> None:
    """Its own name says whose rollback it is."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(rolls_back, parameters={"name": "demo"}, name=name)
        run_flow(rolls_back, flow_run=run, parameters={"name": "demo"})
        assert client.read_flow_run(run.id).name == shown


def test_each_name_that_prefect_draws_is_known() -> None:
    """By the very function that the server draws with."""
    assert all(run_name.is_drawn(generate_slug(2)) for _ in range(2000))
