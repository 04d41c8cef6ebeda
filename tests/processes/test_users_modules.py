"""A user's own tasks.py, flows.py and deployments.py in the working folder are never imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.stack import embedded, services
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


@pytest.mark.full  # in `make test` tests/e2e/test_retrain.py shows it: its folder holds such files too
def test_the_embedded_server_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `precis run`: uvicorn by itself would put the working folder first on its path."""
    for name in ("PREFECT_API_URL", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(folder / "prefect"))
    script = (
        "from flows.stack import embedded\n"
        "with embedded.server() as wait_until_ready: wait_until_ready()\n"
        "print('answered')"
    )
    words = [sys.executable, "-P", "-c", script]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout == "answered\n", done.stderr


@pytest.mark.full
def test_the_mlflow_server_starts(folder: Path) -> None:
    """MLflow loads our plugin, tasks.tracking.request_headers, when it is imported."""
    port = embedded.free_port()
    words = services.mlflow_server(port, f"sqlite:///{folder}/mlflow.db", str(folder / "files"))
    with services.service("mlflow", words, folder / "logs", services.SETTINGS) as server:
        server.wait(lambda: services.answers(f"http://127.0.0.1:{port}/health"))
    assert "of the user" not in (folder / "logs/mlflow.log").read_text()


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
