"""The Prefect server that a run starts for itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.context import refresh_global_settings_context

from flows.stack import embedded

ROOT = Path(__file__).parents[2]
RUN = """
from flows.stack import embedded
with embedded.server() as ready:
    ready()
    from prefect.client.orchestration import get_client
    with get_client(sync_client=True) as client:
        print(len(client.read_flows()))
"""


@pytest.mark.full
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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Prefect's folder, which is not there yet."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    refresh_global_settings_context()
    yield tmp_path / "prefect"
    monkeypatch.undo()
    refresh_global_settings_context()


def locks(home: Path) -> bool:
    """Whether a start takes the lock."""
    (home / "precis-start.lock").unlink(missing_ok=True)
    with embedded.sole_start():
        return (home / "precis-start.lock").exists()


def test_only_on_a_database_that_a_server_answered_on_nobody_waits(home: Path) -> None:
    """A start that failed shows nothing, and a database that came after a deleted one is new."""
    with pytest.raises(RuntimeError), embedded.sole_start():
        raise RuntimeError
    (home / "prefect.db").touch()
    assert [locks(home), locks(home)] == [True, False]
    (home / "prefect.db").rename(home / "old.db")  # keeps its inode from being given out again
    assert locks(home)
    (home / "prefect.db").touch()
    assert [locks(home), locks(home)] == [True, False]


def test_a_folder_that_takes_no_lock_keeps_nobody_from_starting(home: Path) -> None:
    """Prefect itself may do without it, its database being elsewhere."""
    home.touch()
    with embedded.sole_start():
        pass
