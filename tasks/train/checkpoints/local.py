"""Which job a folder belongs to, and the last checkpoint of it that is whole.

    FOLDER/job.json                     what the weights depend on; another job starts anew
    FOLDER/checkpoints/checkpoint-N/    as transformers writes them, plus complete.json, written last
    FOLDER/adapter/                     the result
    FOLDER/finished.json                what `train` returned; a finished job is not trained twice

transformers writes a checkpoint file by file under its final name and resumes from the highest
number, whole or not. Here only one with `complete.json` counts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tasks.contracts import digest
from tasks.contracts.recipe import Training

MARKER = "complete.json"
# Training settings that no weight depends on: another value of one is still the same job.
HARMLESS = {
    "save_steps",
    "logging_steps",
    "timeout_hours",
    "checkpoint_store",
    "memory",
    "base_weights",
}


def deciding(training: Training) -> dict[str, Any]:
    """The training settings that weights depend on, JSON-able: for a job's and a step's key."""
    found = training.model_dump(mode="json", exclude=HARMLESS)
    # One device's keys are what they were before there could be several.
    return {k: v for k, v in found.items() if k not in ("devices", "nodes") or v != 1}


def prepare(folder: Path, job: dict[str, Any]) -> Path | None:
    """Make `folder` this job's; its last whole checkpoint, or None to start from the beginning.

    Another job's checkpoints and results are removed, and so are half-written ones of this job.
    """
    known = folder / "job.json"
    checkpoints = folder / "checkpoints"
    if _read(known) != job:
        for path in (known, folder / "finished.json"):
            path.unlink(missing_ok=True)
        for path in (checkpoints, folder / "adapter"):
            shutil.rmtree(path, ignore_errors=True)
        checkpoints.mkdir(parents=True)
        write(known, job)
    found = {int(path.name.rpartition("-")[2]): path for path in checkpoints.glob("checkpoint-*")}
    for path in found.values():
        if not (path / MARKER).exists():
            shutil.rmtree(path)
    whole = [step for step, path in found.items() if path.exists()]
    return found[max(whole)] if whole else None


def mark_complete(checkpoint: Path, meter: dict[str, float]) -> None:
    """Say that everything in `checkpoint` is written; `meter` is what training had used by then."""
    write(checkpoint / MARKER, meter)


def meter_of(checkpoint: Path) -> dict[str, float]:
    """What training had used when this checkpoint was written."""
    values: dict[str, float] = json.loads((checkpoint / MARKER).read_text())
    return values


def finished(folder: Path) -> dict[str, Any] | None:
    """The answer of a job that ended here before, if its adapter still is what it was."""
    answer: dict[str, Any] | None = _read(folder / "finished.json")
    if answer and digest.of_folder(folder / "adapter") == answer["digest"]:
        return answer
    return None


def finish(folder: Path, answer: dict[str, Any]) -> None:
    """Keep the answer; the checkpoints have served."""
    write(folder / "finished.json", answer)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def write(path: Path, value: Any) -> None:
    """Write JSON so that a reader finds all of it or none."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True))
    partial.replace(path)


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None
