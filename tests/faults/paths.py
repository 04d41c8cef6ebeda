"""`python -m tests.faults.trials` finds the tests' helpers as pytest does: import this first."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

for _folder in ("tests/faults", "tests/e2e", "tests"):
    if str(ROOT / _folder) not in sys.path:
        sys.path.insert(1, str(ROOT / _folder))

# As tests/conftest.py, before anything imports Prefect, MLflow or transformers.
os.environ.update(
    HF_HUB_OFFLINE="1",
    DO_NOT_TRACK="1",
    OMP_WAIT_POLICY="PASSIVE",
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
)
