"""Requests made from the server's own OpenAPI schema, valid and broken: 4xx for bad ones, never 5xx."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import served_models
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("one_thread")]
EXAMPLES = 40
CHECKS = [checks.not_a_server_error, checks.status_code_conformance, checks.negative_data_rejection]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The schema of a server that runs."""
    home = tmp_path_factory.mktemp("serve")
    with (
        served_models.store(tmp_path_factory, home),
        tempfile.TemporaryDirectory() as sockets,
        served_models.served(home, Path(sockets), max_request_bytes=20_000) as server,
    ):
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/summarize"])
def test_no_request_is_a_server_error(api: Any, path: str, mode: GenerationMode) -> None:
    """What the schema allows is answered or refused as documented; what it does not is refused."""
    statuses: set[int] = set()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=api[path]["POST"].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        answer = case.call()
        case.validate_response(answer, checks=CHECKS)
        statuses.add(answer.status_code)

    ask()
    assert statuses & {400, 415}, statuses
    assert max(statuses) < 500
