"""A user's own tasks.py, flows.py and deployments.py in the working folder are never imported.

Every folder of tests/e2e/stack.py holds such files too: that the embedded Prefect server starts there is
shown by test_retrain.py, and that `precis up` and its servers and worker do, by test_browser.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.processes import step_process, supervised

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with modules that raise when they are imported."""
    for name in ("tasks", "flows", "deployments"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name}.py of the user')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return tmp_path


def imported() -> list[str]:
    """The files of our packages, as the child imports them."""
    import deployments
    import flows
    import tasks

    return [str(module.__file__) for module in (tasks, flows, deployments)]


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "forked"])
def test_a_step_process_imports_ours(
    fresh: bool, folder: Path, light_libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{light_libraries}")
    found = step_process.run("test_users_modules:imported", {}, folder / "step", fresh=fresh)
    assert [
        line for line in (folder / "step/log.txt").read_text().splitlines() if "refused" in line
    ] == []
    assert [Path(path).name for path in found] == ["__init__.py"] * 3


def test_a_supervised_process_starts(folder: Path) -> None:
    process = supervised.start([sys.executable, "-c", "print('done')"], folder / "log")
    assert process.wait(60) == 0, (folder / "log").read_text()
    supervised.stop(process)


def test_postgresql_s_process_imports_ours(folder: Path) -> None:
    """Started without its folder, it ends after our imports."""
    words = [*supervised.PYTHON_MODULE, "flows.stack.postgres"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stderr.endswith("IndexError: list index out of range\n"), done.stderr


@pytest.mark.full
def test_the_ranks_of_a_training_import_ours(folder: Path) -> None:
    """Given a call that names no folder, they end once they have met."""
    from tasks.contracts.errors import ChildFailed
    from tasks.contracts.recipe import Training
    from tasks.train import launch

    with pytest.raises(ChildFailed, match="KeyError: 'folder'"):
        launch.train({}, Training(devices=2), folder)
