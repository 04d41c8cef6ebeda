"""Put an adapter and its base together, in a process of its own: it needs torch, and no MLflow."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tasks.contracts.errors import RegistryError
from tasks.processes import step_process
from tasks.serving.summarizer import adapter

LOCK_SECONDS = 3600.0  # another process makes the same model


def make(package: Path, base: Path, out: Path, scratch: Path) -> None:
    """As `write`; a process that has not imported torch leaves it to a child, with its files in `scratch`."""
    words = {"package": str(package), "base": str(base), "out": str(out)}
    if "torch" in sys.modules:
        write(**words)
    else:
        target = "tasks.tracking.whole_model:write"
        step_process.run(target, words, scratch, wait_seconds=LOCK_SECONDS)


def write(package: str, base: str, out: str) -> None:
    """Write the judged package to the folder `out`, whole or not at all. A child-process target.

    Raises RegistryError when base and adapter do not give the judged weights, or when the disk is full.
    """
    folder = Path(out)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        adapter.merge_weights(Path(package), Path(base), folder)
    except (adapter.BaseChanged, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RegistryError(f"{package} cannot be put together with its base: {error}") from error
