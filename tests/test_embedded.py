"""The Prefect server that a run starts for itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.context import refresh_global_settings_context

from flows import embedded

ROOT = Path(__file__).parents[1]
RUN = """
from flows import embedded
with embedded.server() as ready:
    ready()
    from prefect.client.orchestration import get_client
    with get_client(sync_client=True) as client:
        print(len(client.read_flows()))
"""


def test_three_runs_at_once_on_a_new_database_all_get_a_server(tmp_path: Path) -> None:
    """Each server makes the tables where there are none: unguarded, two do and one fails."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    env |= {"PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"}
    runs = []
    for number in range(3):
        (folder := tmp_path / str(number)).mkdir()
        runs.append(
            subprocess.Popen(
                [sys.executable, "-c", RUN],
                cwd=folder,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ends = [(*run.communicate(timeout=120), run.returncode) for run in runs]
    assert [end[0] for end in ends] == ["0\n"] * 3, ends


def test_a_start_that_failed_leaves_the_next_one_careful(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a server that answered shows that the tables are made; a folder that takes no lock is no error."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    refresh_global_settings_context()
    lock = tmp_path / "prefect/precis-start.lock"
    with pytest.raises(RuntimeError), embedded.sole_start():
        raise RuntimeError
    (tmp_path / "prefect/prefect.db").touch()
    lock.unlink()
    with embedded.sole_start():
        assert lock.exists()
    lock.unlink()
    with embedded.sole_start():
        assert not lock.exists()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file/home"))
    (tmp_path / "file").touch()
    refresh_global_settings_context()
    with embedded.sole_start():
        pass
    monkeypatch.undo()
    refresh_global_settings_context()
