"""Tests run offline, on their own stores, and in CI without skips."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import once
import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

# The files of `make test-all` that take longest, in that order. They begin first: one of them that begins
# last, as xdist's own order of files has it (fewest tests last), runs alone at the end for minutes.
LONGEST = (
    "e2e/test_crashes.py",
    "e2e/test_deployed.py",
    "e2e/test_verify.py",
    "e2e/test_approval.py",
    "e2e/test_browser.py",
    "e2e/test_postgres.py",
    "e2e/test_known_recipes.py",
    "e2e/test_servers.py",
    "e2e/test_faults.py",
    "e2e/test_loss.py",
    "e2e/test_watch.py",
    "train/test_train_devices.py",
    "e2e/test_slots.py",
    "serve/test_serve_processes.py",
    "e2e/test_waiting_runs.py",
    "e2e/test_ask.py",
    "evaluate/test_evaluate_cluster.py",
    "e2e/test_wheel.py",
    "e2e/test_readme.py",
    "evaluate/test_evaluate_data_parallel.py",
)

# Before anything imports Prefect, MLflow or transformers.
os.environ.update(
    HF_HUB_OFFLINE="1",
    DO_NOT_TRACK="1",
    OMP_WAIT_POLICY="PASSIVE",  # as tasks/processes/step_process.py
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
)

# The same examples each time: a run says whether this change broke something. HYPOTHESIS_PROFILE=search
# draws new ones, to find what nobody has met.
hypothesis.settings.register_profile("same", derandomize=True, database=None)
hypothesis.settings.register_profile("search", derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in: its own mlruns/ and its own Prefect home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL", "PRECIS_WORK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def home_with_store(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`home` with an empty MLflow store: MLflow takes 1.6 s of CPU to make one, a copy takes 0.1."""
    once.copy_store(once.made_once(tmp_path_factory, "empty-store", _make_store), home)
    return home


def _make_store(folder: Path) -> None:
    from tasks.tracking import connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns/mlflow.db")
        connection.connect()


@pytest.fixture(autouse=True, scope="module")
def _mlflow_forgets() -> Iterator[None]:
    """What a file's tests told MLflow ends with the file: its setters write the environment as well."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    if "mlflow" in sys.modules:
        import mlflow

        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small matrices on a busy machine: two threads would wait for each other most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real inputs beside the checkout; skips where they are absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real inputs are not here ({SHARED})")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the order of all others stays."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):  # type: ignore[no-untyped-def]
    report = yield
    if os.environ.get("PRECIS_NO_SKIPS") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be: {report.longrepr}"
    return report
