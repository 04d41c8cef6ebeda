"""Checkpoints in a store that all workers see, so that a killed job resumes on another machine.

    STORE/JOB/job.json                      the job, whose digest JOB is: see tasks/train/qlora.py
    STORE/JOB/checkpoint-N/UPLOAD/...       the files, below a name of their own for each upload
    STORE/JOB/checkpoint-N/complete.json    written last: which upload counts, its files' digests

Two machines that train the same job at once do not mix their files: the last complete upload of a
step counts. The digests find torn or altered files, not what somebody with access wrote on purpose.
"""

from __future__ import annotations

import json
import re
import shutil
import time
import uuid
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tasks.contracts import digest
from tasks.contracts.errors import TrainingError
from tasks.train import notes
from tasks.train.checkpoints.backends import Backend, backend_of
from tasks.train.checkpoints.local import MARKER

KEPT = 2  # as on the machine itself: the older one is used where the last is altered
INCOMING = "incoming"


def _inside(name: str) -> str:
    """The name; ValueError where it leads out of the folder that it is put in."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name} is not the name of a file in a checkpoint")
    return name


class File(BaseModel):
    """What a checkpoint's file must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size_bytes: int
    blake3: str


class Manifest(BaseModel):
    """A complete checkpoint: the content of complete.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    job: str
    step: int
    upload: Annotated[str, Field(pattern="^[0-9a-f]+$")]
    files: dict[Annotated[str, AfterValidator(_inside)], File]


class IncompleteCheckpoint(Exception):
    """A stored checkpoint that must not be resumed from; the text says why."""


class CheckpointStore:
    """The checkpoints of one job in a store.

    A store that fails stops a training from starting, but not one that is running.
    """

    def __init__(self, backend: Backend, job: dict[str, Any]) -> None:
        """Raises TrainingError when the store cannot be listed or written to."""
        self.backend = backend
        self.key = digest.of_value(job)
        backend.check()
        backend.write(f"{self.key}/job.json", json.dumps(job, indent=2, sort_keys=True).encode())

    def newest(self, folder: Path, local: Path | None) -> Path | None:
        """The checkpoint to resume from: the store's last complete one if it is ahead of `local`.

        It is downloaded to `folder`, verified file by file, and only then renamed to a checkpoint.
        One that is torn or altered is reported, and the one before it tried. Raises TrainingError
        when the store cannot be read.
        """
        reached, refused = _step(local.name) if local else 0, set[int]()
        while ahead := [
            step for step in self._complete_steps() if step > reached and step not in refused
        ]:
            step = max(ahead)
            try:
                downloaded = self._download(step, folder)
            except IncompleteCheckpoint as why:
                refused.add(step)
                notes.warn(f"checkpoint {step} at {self._uri(step)} is refused: {why}")
                continue
            notes.info(f"training goes on from checkpoint {step} of {self._uri(step)}")
            return downloaded
        return local

    def save(self, checkpoint: Path) -> None:
        """Upload a complete checkpoint, then remove all but the last two up to it.

        A store that fails now does not end training: a warning is given, and the next checkpoint is
        uploaded again.
        """
        step, started = _step(checkpoint.name), time.monotonic()
        try:
            size = self._upload(checkpoint, step)
        except (TrainingError, OSError) as error:
            notes.warn(
                f"checkpoint {step} is not stored: {error}. It stays in {checkpoint}, and the next "
                "one will be tried again"
            )
            return
        seconds = time.monotonic() - started
        notes.info(
            f"checkpoint {step} stored at {self._uri(step)} ({size / 2**20:.1f} MiB, {seconds:.1f} s)"
        )
        try:
            self._remove_before(step)
        except TrainingError as error:
            notes.warn(f"older checkpoints are not removed from the store: {error}")

    def _uri(self, step: int) -> str:
        return f"{self.backend.uri}/{self.key}/checkpoint-{step}"

    def _complete_steps(self) -> list[int]:
        marked = re.compile(rf"{self.key}/checkpoint-(\d+)/{re.escape(MARKER)}")
        matches = (marked.fullmatch(name) for name in self.backend.names(f"{self.key}/"))
        return sorted(int(match[1]) for match in matches if match)

    def _upload(self, checkpoint: Path, step: int) -> int:
        root, upload = f"{self.key}/{checkpoint.name}", uuid.uuid4().hex
        files = {}
        for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
            name = path.relative_to(checkpoint).as_posix()
            files[name] = File(size_bytes=path.stat().st_size, blake3=digest.of_file(path))
            self.backend.upload(path, f"{root}/{upload}/{name}")
        manifest = Manifest(job=self.key, step=step, upload=upload, files=files)
        self.backend.write(f"{root}/{MARKER}", manifest.model_dump_json(indent=2).encode())
        return sum(file.size_bytes for file in files.values())

    def _remove_before(self, step: int) -> None:
        """Remove all checkpoints, complete or not, before the last KEPT complete ones up to `step`."""
        first = min([done for done in self._complete_steps() if done <= step][-KEPT:], default=0)
        mine = re.compile(rf"{self.key}/checkpoint-(\d+)/.*")
        names = [
            name
            for name in self.backend.names(f"{self.key}/")
            if (match := mine.fullmatch(name)) and int(match[1]) < first
        ]
        self.backend.remove(_markers_first(names))

    def _download(self, step: int, folder: Path) -> Path:
        root = f"{self.key}/checkpoint-{step}"
        incoming, target = folder / INCOMING, folder / f"checkpoint-{step}"
        try:
            manifest = Manifest.model_validate_json(self.backend.read(f"{root}/{MARKER}"))
            if (manifest.job, manifest.step) != (self.key, step):
                raise IncompleteCheckpoint(f"{MARKER} is of another job or step")
            shutil.rmtree(incoming, ignore_errors=True)
            for name, expected in manifest.files.items():
                path = incoming / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self.backend.download(f"{root}/{manifest.upload}/{name}", path)
                _verify(name, path, expected)
            if not (incoming / MARKER).is_file():
                raise IncompleteCheckpoint(f"its upload has no {MARKER} of its own")
        except ValidationError as error:
            raise IncompleteCheckpoint(
                f"{MARKER} is damaged ({error.error_count()} errors)"
            ) from error
        except FileNotFoundError as error:
            raise IncompleteCheckpoint(f"a file is missing ({error})") from error
        shutil.rmtree(target, ignore_errors=True)
        return incoming.rename(target)


def open_store(store: str | None, job: dict[str, Any]) -> CheckpointStore | None:
    """The store of a job, if the recipe names one; TrainingError when it cannot be used."""
    return CheckpointStore(backend_of(store), job) if store else None


def remove_job(store: str, job: str) -> None:
    """Remove all files of the job with that digest; TrainingError when the store refuses."""
    backend = backend_of(store)
    backend.remove(_markers_first(backend.names(f"{job}/")))


def check(store: str) -> str:
    """One line about a store that can be listed; TrainingError where it cannot. Nothing is written."""
    backend = backend_of(store)
    backend.check()
    return f"checkpoint store: {backend.uri} answers"


def _step(name: str) -> int:
    return int(name.rpartition("-")[2])


def _markers_first(names: list[str]) -> list[str]:
    # If this process is killed in between, what is left must not look complete.
    return sorted(names, key=lambda name: (not name.endswith(f"/{MARKER}"), name))


def _verify(name: str, path: Path, expected: File) -> None:
    size = path.stat().st_size
    if size != expected.size_bytes:
        raise IncompleteCheckpoint(f"{name} has {size} bytes, {MARKER} says {expected.size_bytes}")
    if digest.of_file(path) != expected.blake3:
        raise IncompleteCheckpoint(f"{name} has another BLAKE3 digest than {MARKER} says")
