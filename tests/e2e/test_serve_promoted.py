"""`precis serve` of a model that a run trained, judged and promoted: where the rows it is checked by lie."""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx
import once
import pytest
import served_models
from stack import promoted_store

from tasks.register import task as register
from tasks.tracking import connection

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("one_thread")]


def test_a_promoted_model_gives_back_what_it_was_judged_by(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sealed feedback, the default: its rows are found, and written again by the engine."""
    once.copy_store(promoted_store(tmp_path_factory), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rows = register.stored_rows(connection.connect(), "demo", 1)
    with (
        tempfile.TemporaryDirectory() as sockets,
        served_models.served(tmp_path, Path(sockets), reference="demo", check_rows=2) as server,
    ):
        answer = httpx.post(
            f"{server.url}/summarize", json={"document": rows[2].document}, timeout=120
        )
        assert answer.json()["summaries"][0]["summary"] == rows[2].text, answer.text
        assert server.wait(lambda health: True)["rows_checked"] == 2
