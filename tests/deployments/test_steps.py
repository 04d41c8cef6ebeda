"""What a worker does before it loads a flow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deployments import steps
from flows import home_folder

ROOT = Path(__file__).parents[2]


def test_a_flow_is_imported_beside_our_code_and_then_goes_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect imports it from the folder where the pull step ends; a user's flows.py is at home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRECIS_HOME", ".")
    monkeypatch.setenv(home_folder.ENTER, "")  # undone after the test
    assert steps.enter_home() == {"directory": str(ROOT)}
    assert Path.cwd() == ROOT
    assert os.environ[home_folder.ENTER] == str(tmp_path)
    home_folder.enter()
    assert Path.cwd() == tmp_path


def test_without_a_home_a_flow_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`precis run` is where the user is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(home_folder.ENTER, raising=False)
    home_folder.enter()
    assert Path.cwd() == tmp_path
