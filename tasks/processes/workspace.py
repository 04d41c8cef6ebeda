"""Folders of this machine: the embedded store, and the scratch space that steps work in."""

from __future__ import annotations

import os
from pathlib import Path

EMBEDDED_STORE = Path("mlruns")  # MLflow's database and artifacts where no server is set


def work_folder() -> Path:
    """Scratch space of this machine, absolute: PRECIS_WORK, or mlruns/work."""
    return Path(os.environ.get("PRECIS_WORK") or EMBEDDED_STORE / "work").absolute()
