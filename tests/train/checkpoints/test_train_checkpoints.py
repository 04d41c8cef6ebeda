"""Which checkpoint a job resumes from."""

from __future__ import annotations

from pathlib import Path

from tasks.train.checkpoints import local

JOB = {"rows": "a", "training": {"seed": 0}}


def write_checkpoint(folder: Path, step: int, whole: bool = True) -> Path:
    path = folder / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "optimizer.pt").write_bytes(b"state")
    if whole:
        local.mark_complete(path, {"seconds": float(step)})
    return path


def test_a_new_job_starts_from_the_beginning(tmp_path: Path) -> None:
    """An empty folder has no checkpoint to resume from."""
    assert local.prepare(tmp_path / "job", JOB) is None
    assert local.finished(tmp_path / "job") is None


def test_the_same_job_goes_on_from_its_last_whole_checkpoint(tmp_path: Path) -> None:
    """Step 100 comes after 20; a half-written checkpoint is passed over, and removed."""
    local.prepare(tmp_path, JOB)
    write_checkpoint(tmp_path, 20)
    last = write_checkpoint(tmp_path, 100)
    broken = write_checkpoint(tmp_path, 120, whole=False)
    assert local.prepare(tmp_path, JOB) == last
    assert local.usage_at(last) == {"seconds": 100.0}
    assert not broken.exists()


def test_another_job_starts_from_scratch(tmp_path: Path) -> None:
    """Other rows, base or settings: nothing of the job before is left."""
    local.prepare(tmp_path, JOB)
    old = write_checkpoint(tmp_path, 20)
    (tmp_path / "adapter").mkdir()
    local.finish(tmp_path, {"digest": "x"})
    old = write_checkpoint(tmp_path, 20)
    assert local.prepare(tmp_path, JOB | {"rows": "b"}) is None
    assert not old.exists()
    assert not (tmp_path / "adapter").exists()
    assert local.finished(tmp_path) is None


def test_a_finished_job_counts_only_with_its_adapter(tmp_path: Path) -> None:
    """An answer whose adapter was changed or lost is no answer."""
    local.prepare(tmp_path, JOB)
    local.finish(tmp_path, {"digest": "of an adapter that is gone"})
    assert local.finished(tmp_path) is None
