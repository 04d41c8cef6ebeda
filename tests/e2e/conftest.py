"""What whole sessions share: a Prefect server for short flows, and a warm `precis`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import once
import pytest
import warm
from stack import prefect_server_in
from warm import WarmPrecis


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real server for all flow runs of this session, without schedules and events; its API URL."""
    folder = tmp_path_factory.mktemp("prefect-server")
    once.put_prefect_database(folder)
    own = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_API")}
    own |= {"PREFECT_HOME": str(folder), "PREFECT_UI_ENABLED": "0"}
    with prefect_server_in(folder, own, "--no-services") as url:
        yield url


@pytest.fixture(scope="session")
def warm_precis() -> WarmPrecis:
    """The `precis` command without the seconds of imports."""
    return warm.warm_precis()
