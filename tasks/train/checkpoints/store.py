"""Checkpoints where every worker sees them, so that a killed job goes on on another machine.

    STORE/JOB/job.json                      the job, whose digest JOB is: see tasks/train/qlora.py
    STORE/JOB/checkpoint-N/UPLOAD/...       the files, below a name of their own for each upload
    STORE/JOB/checkpoint-N/complete.json    written last: which upload counts, its files' digests

Two machines that train one job at once never mix: the last whole upload of a step is the one that
counts. The digests find what is torn or altered, not what somebody with access wrote on purpose.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
import uuid
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tasks.contracts import digest
from tasks.contracts.errors import TrainingError
from tasks.processes import step_process
from tasks.train.checkpoints.backends import Place, place_of
from tasks.train.checkpoints.local import MARKER

KEPT = 2  # as on the machine itself: an older one where the last is found altered
INCOMING = "incoming"


def _inside(name: str) -> str:
    """Refuse a name that leads out of the folder it is put in."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name} is no name of a file in a checkpoint")
    return name


class File(BaseModel):
    """What a checkpoint's file must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size_bytes: int
    blake3: str


class Manifest(BaseModel):
    """A whole checkpoint: the content of complete.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    job: str
    step: int
    upload: Annotated[str, Field(pattern="^[0-9a-f]+$")]
    files: dict[Annotated[str, AfterValidator(_inside)], File]


class NotWhole(Exception):
    """A stored checkpoint that must not be gone on from; the text says why."""


class Store:
    """The checkpoints of one job in a store. Training's start fails with it, training's course not."""

    def __init__(self, place: Place, job: dict[str, Any]) -> None:
        """Raises TrainingError when the store cannot be listed or written to."""
        self.place = place
        self.key = digest.of_value(job)
        place.look()
        place.write(f"{self.key}/job.json", json.dumps(job, indent=2, sort_keys=True).encode())

    def newest(self, folder: Path, local: Path | None) -> Path | None:
        """The checkpoint to go on from: the store's last whole one if it is ahead of `local`.

        It is downloaded to `folder`, verified file by file, and only then named as a checkpoint.
        One that is torn or altered is reported, and the one before it tried. Raises TrainingError
        when the store cannot be read.
        """
        reached, refused = _step(local.name) if local else 0, set[int]()
        while ahead := [step for step in self._whole() if step > reached and step not in refused]:
            step = max(ahead)
            try:
                found = self._download(step, folder)
            except NotWhole as why:
                refused.add(step)
                _say(f"checkpoint {step} at {self._uri(step)} is refused: {why}", failed=True)
                continue
            _say(f"training goes on from checkpoint {step} of {self._uri(step)}")
            return found
        return local

    def keep(self, checkpoint: Path) -> None:
        """Store a whole checkpoint, then remove all but the last two up to it.

        A store that fails now does not end training: it is reported, and the next one tried.
        """
        step, started = _step(checkpoint.name), time.monotonic()
        try:
            size = self._upload(checkpoint, step)
        except (TrainingError, OSError) as error:
            _say(
                f"checkpoint {step} is not stored: {error}. It stays in {checkpoint}, and the next "
                "one is tried again",
                failed=True,
            )
            return
        seconds = time.monotonic() - started
        _say(
            f"checkpoint {step} stored at {self._uri(step)} ({size / 2**20:.1f} MiB, {seconds:.1f} s)"
        )
        try:
            self._remove_before(step)
        except TrainingError as error:
            _say(f"older checkpoints are not removed from the store: {error}", failed=True)

    def _uri(self, step: int) -> str:
        return f"{self.place.uri}/{self.key}/checkpoint-{step}"

    def _whole(self) -> list[int]:
        marked = re.compile(rf"{self.key}/checkpoint-(\d+)/{re.escape(MARKER)}")
        found = (marked.fullmatch(name) for name in self.place.names(f"{self.key}/"))
        return sorted(int(match[1]) for match in found if match)

    def _upload(self, checkpoint: Path, step: int) -> int:
        root, upload = f"{self.key}/{checkpoint.name}", uuid.uuid4().hex
        files = {}
        for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
            name = path.relative_to(checkpoint).as_posix()
            files[name] = File(size_bytes=path.stat().st_size, blake3=digest.of_file(path))
            self.place.upload(path, f"{root}/{upload}/{name}")
        manifest = Manifest(job=self.key, step=step, upload=upload, files=files)
        self.place.write(f"{root}/{MARKER}", manifest.model_dump_json(indent=2).encode())
        return sum(file.size_bytes for file in files.values())

    def _remove_before(self, step: int) -> None:
        """Remove all checkpoints, whole or not, before the last KEPT whole ones up to `step`."""
        first = min([found for found in self._whole() if found <= step][-KEPT:], default=0)
        mine = re.compile(rf"{self.key}/checkpoint-(\d+)/.*")
        names = [
            name
            for name in self.place.names(f"{self.key}/")
            if (match := mine.fullmatch(name)) and int(match[1]) < first
        ]
        self.place.remove(_markers_first(names))

    def _download(self, step: int, folder: Path) -> Path:
        root = f"{self.key}/checkpoint-{step}"
        incoming, target = folder / INCOMING, folder / f"checkpoint-{step}"
        try:
            manifest = Manifest.model_validate_json(self.place.read(f"{root}/{MARKER}"))
            if (manifest.job, manifest.step) != (self.key, step):
                raise NotWhole(f"{MARKER} speaks of another job or step")
            shutil.rmtree(incoming, ignore_errors=True)
            for name, said in manifest.files.items():
                path = incoming / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self.place.download(f"{root}/{manifest.upload}/{name}", path)
                _verify(name, path, said)
            if not (incoming / MARKER).is_file():
                raise NotWhole(f"its upload has no {MARKER} of its own")
        except ValidationError as error:
            raise NotWhole(f"{MARKER} is damaged ({error.error_count()} errors)") from error
        except FileNotFoundError as error:
            raise NotWhole(f"a file is missing ({error})") from error
        shutil.rmtree(target, ignore_errors=True)
        return incoming.rename(target)


def open_store(store: str | None, job: dict[str, Any]) -> Store | None:
    """The store of a job, if the recipe names one; TrainingError when it cannot be used."""
    return Store(place_of(store), job) if store else None


def forget(store: str, job: str) -> None:
    """Remove everything of the job with that digest. Raises TrainingError when the store refuses."""
    place = place_of(store)
    place.remove(_markers_first(place.names(f"{job}/")))


def look(store: str) -> str:
    """One line about a store that can be listed; TrainingError where it cannot. Writes nothing."""
    place = place_of(store)
    place.look()
    return f"checkpoint store: {place.uri} answers"


def _step(name: str) -> int:
    return int(name.rpartition("-")[2])


def _markers_first(names: list[str]) -> list[str]:
    # Whoever removes may be killed: what is left must not look whole.
    return sorted(names, key=lambda name: (not name.endswith(f"/{MARKER}"), name))


def _verify(name: str, path: Path, said: File) -> None:
    size = path.stat().st_size
    if size != said.size_bytes:
        raise NotWhole(f"{name} has {size} bytes, {MARKER} says {said.size_bytes}")
    if digest.of_file(path) != said.blake3:
        raise NotWhole(f"{name} has another BLAKE3 than {MARKER} says")


def _say(text: str, failed: bool = False) -> None:
    """To the parent's log, through the child's progress; a failure to the child's own log as well."""
    logging.getLogger(__name__).log(logging.WARNING if failed else logging.INFO, text)
    step_process.report(kind="note", text=text, failed=failed)
