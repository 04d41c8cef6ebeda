"""Where a checkpoint store lies: below a prefix of an S3 bucket, or in a folder all workers see.

Both hold files by name, names being relative and with slashes. A file is there as a whole or not at
all under its name in S3; in a folder only `write` is atomic.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from tasks.contracts.errors import TrainingError
from tasks.processes import s3

SETTING = "training.checkpoint_store"
ELSE = f"or leave {SETTING} out and keep checkpoints on this machine only"
# A store that is silent must not hold training for longer than a minute or so a checkpoint.
PATIENCE = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 0}}


class Place(Protocol):
    """A store; every method raises TrainingError when the store cannot be reached or refuses."""

    uri: str

    def look(self) -> None:
        """Do nothing where the store is there and can be listed."""

    def names(self, below: str) -> list[str]:
        """Every file whose name begins with `below`, which ends with a slash."""

    def read(self, name: str) -> bytes:
        """A small file; FileNotFoundError when there is none."""

    def write(self, name: str, data: bytes) -> None:
        """A small file, replaced atomically."""

    def upload(self, path: Path, name: str) -> None:
        """Copy a file of this machine into the store."""

    def download(self, name: str, path: Path) -> None:
        """Copy a file to this machine; FileNotFoundError when there is none."""

    def remove(self, names: list[str]) -> None:
        """Remove files, in this order; one that is gone already is no error."""


def place_of(store: str) -> Place:
    """The place a recipe names: s3://bucket/prefix, or a folder. Nothing is asked of it yet."""
    if store.startswith("s3://"):
        return S3Place(store)
    if "://" in store:
        raise TrainingError(
            f"{SETTING}: {store} is of no kind that precis knows; write s3://bucket/prefix or a "
            "folder that all workers see"
        )
    return FolderPlace(store)


class FolderPlace:
    """A folder, usually of a share that every worker mounts."""

    def __init__(self, store: str) -> None:
        self.root = Path(store).absolute()
        self.uri = str(self.root)

    def look(self) -> None:
        """See Place; also says when the folder may not be written to."""
        with self._refusals():
            os.listdir(self.root)
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise TrainingError(
                f"{SETTING}: {self.uri} may not be written to; change its mode, {ELSE}"
            )

    def names(self, below: str) -> list[str]:
        """See Place."""
        with self._refusals():
            found = [path for path in (self.root / below).rglob("*") if path.is_file()]
            return sorted(path.relative_to(self.root).as_posix() for path in found)

    def read(self, name: str) -> bytes:
        """See Place."""
        with self._refusals(reading=True):
            return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """See Place."""
        with self._refusals():
            target = self._made(name)
            partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
            partial.write_bytes(data)
            partial.replace(target)

    def upload(self, path: Path, name: str) -> None:
        """See Place."""
        with self._refusals():
            shutil.copyfile(path, self._made(name))

    def download(self, name: str, path: Path) -> None:
        """See Place."""
        with self._refusals(reading=True):
            shutil.copyfile(self.root / name, path)

    def remove(self, names: list[str]) -> None:
        """See Place; folders that this empties go too."""
        with self._refusals():
            for name in names:
                (self.root / name).unlink(missing_ok=True)
            inner = {p for name in names for p in PurePosixPath(name).parents if p.name}
            for folder in sorted(inner, key=lambda p: -len(p.parts)):
                with contextlib.suppress(OSError):  # not empty: another run's, or gone
                    (self.root / folder).rmdir()

    def _made(self, name: str) -> Path:
        os.listdir(self.root)  # a share that is not mounted must not become a folder of this disk
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @contextlib.contextmanager
    def _refusals(self, reading: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if reading and isinstance(error, FileNotFoundError) and self.root.is_dir():
                raise
            raise TrainingError(
                f"{SETTING}: {self.uri}: {error}; make or mount the folder on every worker, {ELSE}"
            ) from error


class S3Place:
    """A bucket, below a prefix."""

    def __init__(self, store: str) -> None:
        self.bucket, _, prefix = store.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise TrainingError(f"{SETTING}: {store} names no bucket; write s3://bucket/prefix")
        self.prefix = f"{prefix.strip('/')}/".lstrip("/")
        self.uri = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self._client: Any = None

    def look(self) -> None:
        """See Place."""
        with self._refusals():
            self._s3().list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)

    def names(self, below: str) -> list[str]:
        """See Place."""
        with self._refusals():
            pages = self._s3().get_paginator("list_objects_v2")
            found = pages.paginate(Bucket=self.bucket, Prefix=self.prefix + below)
            keys = [item["Key"] for page in found for item in page.get("Contents", [])]
        return sorted(key.removeprefix(self.prefix) for key in keys)

    def read(self, name: str) -> bytes:
        """See Place."""
        with self._refusals(), self._absent(name):
            answer = self._s3().get_object(Bucket=self.bucket, Key=self.prefix + name)
            data: bytes = answer["Body"].read()
            return data

    def write(self, name: str, data: bytes) -> None:
        """See Place."""
        with self._refusals():
            self._s3().put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data)

    def upload(self, path: Path, name: str) -> None:
        """See Place; large files go in parts."""
        with self._refusals():
            self._s3().upload_file(str(path), self.bucket, self.prefix + name)

    def download(self, name: str, path: Path) -> None:
        """See Place; a stream that breaks off is read again."""
        with self._refusals(), self._absent(name):
            self._s3().download_file(self.bucket, self.prefix + name, str(path))

    def remove(self, names: list[str]) -> None:
        """See Place; one by one: not every S3 store removes many at once."""
        with self._refusals():
            for name in names:
                self._s3().delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def _s3(self) -> Any:
        self._client = self._client or s3.client(**PATIENCE)
        return self._client

    @contextlib.contextmanager
    def _absent(self, name: str) -> Iterator[None]:
        from botocore.exceptions import ClientError

        try:
            yield
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
                raise FileNotFoundError(f"{self.uri}/{name}") from error
            raise

    def _refusals(self) -> contextlib.AbstractContextManager[None]:
        mend = (
            "check bucket and prefix, the AWS credentials and their right to list, read, write and "
            f"delete there, AWS_ENDPOINT_URL for a store other than Amazon's, {ELSE}"
        )
        return s3.refusals(f"{SETTING}: {self.uri}", TrainingError, mend)
