"""`precis serve` as it is started: the champion changes under load, an engine is killed, then the command.

The long form, 2,000 requests from 16 clients, once with each engine: tests/bench/serve_changes.py.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest
import serve_load
import served_models
from serve_load import CORRUPTED, Load, serving

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def test_no_request_fails_or_is_mixed_and_nothing_is_left(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two changes, one to corrupted weights; a killed engine is replaced; kill -9 of the command ends it."""
    stored = {n: served_models.texts_of(tmp_path_factory, n) for n in (1, 2)}
    with (
        served_models.store(tmp_path_factory, tmp_path) as store,
        serving(tmp_path, "--engine", "transformers") as command,
    ):
        load = Load(command.url, stored, clients=8, at_least=300)
        serve_load.run(store, command, load, (2, CORRUPTED))
        assert {outcome for outcome, _ in load.done} == {"right"}, load.done
        assert {number for _, number in load.done} == {1, 2}, load.done
        health = command.wait(lambda health: True)
        assert "v3 is not what was judged" in health["refused"][0]["reason"]
        assert health["version"] == 2

        engine = next(p for p in command.family if "flows.serve.engine" in p.cmdline()[3:4])
        engine.kill()
        answer = httpx.post(f"{command.url}/summarize", json={"document": "x"}, timeout=120)
        assert answer.status_code == 200, answer.text
        command.wait(lambda health: health["engine_restarts"] == 1)

        os.kill(command.process.pid, signal.SIGKILL)
        command.process.wait()
        assert not command.left(30)
