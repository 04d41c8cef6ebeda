"""The rows that a version was judged by: the deciding run's, or an error; empty only where none are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import served_models

from tasks.contracts.errors import RegistryError, StoreUnavailable
from tasks.contracts.records import ROUGE_NAMES, Prediction
from tasks.register import claims
from tasks.register.stored_rows import stored_rows
from tasks.tracking import connection

NAME = "lamps"
ROWS = [
    Prediction(
        f"row-{i}", "source", "doc", ("r",), text, True, 1, 1, 0, dict.fromkeys(ROUGE_NAMES, 0.0)
    )
    for i, text in enumerate(("one", "two"))
]


def registered(home: Path, artifact_location: str | None = None) -> tuple[Any, str]:
    """A client, and the run of v1, which has no artifacts: its evaluation was an earlier run's."""
    client = connection.connect()
    experiment = client.create_experiment(NAME, artifact_location=artifact_location)
    run_id = client.create_run(experiment).info.run_id
    logged = client.create_logged_model(experiment, NAME, source_run_id=run_id)
    tags = {claims.DIGEST: "d" * 64, claims.RUN_ID: run_id}
    source = f"models:/{logged.model_id}"
    assert claims.succeed(client, NAME, None, source=source, tags=tags, description="made")
    return client, run_id


def log(home: Path, client: Any, run_id: str, to: str, rows: list[Prediction]) -> None:
    folder = home / to.replace("/", "-")
    folder.mkdir()
    served_models.log_gate(client, run_id, folder, rows, to)


def test_rows_are_those_that_the_gate_decided_by(home_with_store: Path) -> None:
    """Without predictions of its own; open ones alone too; the sealed ones before those shown."""
    client, run_id = registered(home_with_store)
    assert stored_rows(client, NAME, 1) == []
    log(home_with_store, client, run_id, "gate", ROWS[:1])
    assert stored_rows(client, NAME, 1) == ROWS[:1]
    log(home_with_store, client, run_id, "sealed/gate", ROWS)
    assert stored_rows(client, NAME, 1) == ROWS


def test_a_table_that_was_not_scored_is_an_error(home_with_store: Path) -> None:
    """Neither no rows, nor those of another place."""
    client, run_id = registered(home_with_store)
    log(home_with_store, client, run_id, "gate", ROWS)
    log(home_with_store, client, run_id, "sealed/gate", ROWS)
    uri = client.get_run(run_id).info.artifact_uri
    table = Path(uri.removeprefix("file://")) / "sealed/gate/challenger.json"
    table.write_text(table.read_text().replace("one", "own"))
    with pytest.raises(RegistryError, match=r"sealed/gate/challenger.json: it was changed after"):
        stored_rows(client, NAME, 1)
    table.with_name("gate_inputs.json").unlink()
    with pytest.raises(RegistryError, match=r"sealed/gate/gate_inputs.json"):
        stored_rows(client, NAME, 1)


def test_a_store_that_does_not_answer_is_no_store_without_rows(
    home_with_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client, _ = registered(
        home_with_store, "http://127.0.0.1:9/api/2.0/mlflow-artifacts/artifacts/1"
    )
    with pytest.raises(StoreUnavailable, match="sealed/gate cannot be read"):
        stored_rows(client, NAME, 1)
