"""The folder of a training job, and the job's last complete checkpoint.

    FOLDER/job.json                     what the weights depend on; another job starts from scratch
    FOLDER/checkpoints/checkpoint-N/    as transformers writes them, plus complete.json, written last
    FOLDER/adapter/                     the result
    FOLDER/finished.json                what `train` returned; a finished job is not trained again

transformers writes a checkpoint file by file under its final name and resumes from the highest
number, complete or not. Here only one with `complete.json` counts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tasks.contracts import digest
from tasks.contracts.recipe import Training
from tasks.processes import json_file

MARKER = "complete.json"
# Training settings that no weight depends on: the job stays the same when one of them changes.
NOT_DECIDING = {
    "save_steps",
    "logging_steps",
    "timeout_hours",
    "checkpoint_store",
    "memory",
    "base_weights",
}


def deciding_settings(training: Training) -> dict[str, Any]:
    """The training settings that weights depend on, as JSON values: for a job's and a step's key."""
    settings = training.model_dump(mode="json", exclude=NOT_DECIDING)
    # Keys of trainings on one device stay those of versions that knew no others.
    return {k: v for k, v in settings.items() if k not in ("devices", "nodes") or v != 1}


def prepare(folder: Path, job: dict[str, Any]) -> Path | None:
    """Assign `folder` to this job; its last complete checkpoint, or None to start from scratch.

    Another job's checkpoints and results are removed, and so are incomplete ones of this job.
    """
    job_file = folder / "job.json"
    checkpoints = folder / "checkpoints"
    if json_file.read_if_there(job_file) != job:
        for path in (job_file, folder / "finished.json"):
            path.unlink(missing_ok=True)
        for path in (checkpoints, folder / "adapter"):
            shutil.rmtree(path, ignore_errors=True)
        checkpoints.mkdir(parents=True)
        json_file.write(job_file, job)
    by_step = {int(path.name.rpartition("-")[2]): path for path in checkpoints.glob("checkpoint-*")}
    for path in by_step.values():
        if not (path / MARKER).exists():
            shutil.rmtree(path)
    complete = [step for step, path in by_step.items() if path.exists()]
    return by_step[max(complete)] if complete else None


def mark_complete(checkpoint: Path, usage: dict[str, float]) -> None:
    """Write the marker file, after all others; `usage` is what training has used so far."""
    json_file.write(checkpoint / MARKER, usage)


def usage_at(checkpoint: Path) -> dict[str, float]:
    """What training had used (seconds, tokens) when this checkpoint was written."""
    values: dict[str, float] = json.loads((checkpoint / MARKER).read_text())
    return values


def finished(folder: Path) -> dict[str, Any] | None:
    """The answer of a job that finished in this folder before, if its adapter is unchanged."""
    answer: dict[str, Any] | None = json_file.read_if_there(folder / "finished.json")
    if answer and digest.of_folder(folder / "adapter") == answer["digest"]:
        return answer
    return None


def finish(folder: Path, answer: dict[str, Any]) -> None:
    """Store the answer and remove the checkpoints, which are no longer needed."""
    json_file.write(folder / "finished.json", answer)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
