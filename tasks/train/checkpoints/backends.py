"""Backends of a checkpoint store: a prefix of an S3 bucket, or a folder that all workers see.

Files have relative names with slashes. In S3 an upload is atomic; in a folder only `write` is.
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
ALTERNATIVE = f"or leave {SETTING} out and keep checkpoints on this machine only"
# A store that does not answer must not stop training for more than about a minute a checkpoint.
S3_TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 0}}


class Backend(Protocol):
    """A store; every method raises TrainingError when the store cannot be reached or refuses."""

    uri: str

    def check(self) -> None:
        """Return if the store exists and can be listed."""

    def names(self, below: str) -> list[str]:
        """All files whose name begins with `below`, which ends with a slash."""

    def read(self, name: str) -> bytes:
        """A small file; FileNotFoundError when there is none."""

    def write(self, name: str, data: bytes) -> None:
        """A small file, replaced atomically."""

    def upload(self, path: Path, name: str) -> None:
        """Copy a file of this machine into the store."""

    def download(self, name: str, path: Path) -> None:
        """Copy a file to this machine; FileNotFoundError when there is none."""

    def remove(self, names: list[str]) -> None:
        """Remove files, in this order; one that does not exist is no error."""


def backend_of(store: str) -> Backend:
    """The backend a recipe names: s3://bucket/prefix, or a folder. It is not reached for yet."""
    if store.startswith("s3://"):
        return S3Backend(store)
    if "://" in store:
        raise TrainingError(
            f"{SETTING}: {store} is not a kind of store that precis knows; write s3://bucket/prefix or a "
            "folder that all workers see"
        )
    return FolderBackend(store)


class FolderBackend:
    """A folder, usually of a share that every worker mounts."""

    def __init__(self, store: str) -> None:
        self.root = Path(store).absolute()
        self.uri = str(self.root)

    def check(self) -> None:
        """See Backend; also says when the folder may not be written to."""
        with self._errors():
            os.listdir(self.root)
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise TrainingError(
                f"{SETTING}: {self.uri} may not be written to; change its mode, {ALTERNATIVE}"
            )

    def names(self, below: str) -> list[str]:
        """See Backend."""
        with self._errors():
            files = [path for path in (self.root / below).rglob("*") if path.is_file()]
            return sorted(path.relative_to(self.root).as_posix() for path in files)

    def read(self, name: str) -> bytes:
        """See Backend."""
        with self._errors(reading=True):
            return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """See Backend."""
        with self._errors():
            target = self._target(name)
            partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
            partial.write_bytes(data)
            partial.replace(target)

    def upload(self, path: Path, name: str) -> None:
        """See Backend."""
        with self._errors():
            shutil.copyfile(path, self._target(name))

    def download(self, name: str, path: Path) -> None:
        """See Backend."""
        with self._errors(reading=True):
            shutil.copyfile(self.root / name, path)

    def remove(self, names: list[str]) -> None:
        """See Backend; folders that become empty are removed too."""
        with self._errors():
            for name in names:
                (self.root / name).unlink(missing_ok=True)
            inner = {p for name in names for p in PurePosixPath(name).parents if p.name}
            for folder in sorted(inner, key=lambda p: -len(p.parts)):
                with contextlib.suppress(OSError):  # not empty, or removed by another run
                    (self.root / folder).rmdir()

    def _target(self, name: str) -> Path:
        # Raises: a share that is not mounted must not become a folder of this disk.
        os.listdir(self.root)
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @contextlib.contextmanager
    def _errors(self, reading: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if reading and isinstance(error, FileNotFoundError) and self.root.is_dir():
                raise
            raise TrainingError(
                f"{SETTING}: {self.uri}: {error}; make or mount the folder on every worker, {ALTERNATIVE}"
            ) from error


class S3Backend:
    """A bucket, below a prefix."""

    def __init__(self, store: str) -> None:
        self.bucket, _, prefix = store.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise TrainingError(f"{SETTING}: {store} names no bucket; write s3://bucket/prefix")
        self.prefix = f"{prefix.strip('/')}/".lstrip("/")
        self.uri = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self._client: Any = None

    def check(self) -> None:
        """See Backend."""
        with self._errors():
            self._s3().list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)

    def names(self, below: str) -> list[str]:
        """See Backend."""
        with self._errors():
            pages = self._s3().get_paginator("list_objects_v2")
            listed = pages.paginate(Bucket=self.bucket, Prefix=self.prefix + below)
            keys = [item["Key"] for page in listed for item in page.get("Contents", [])]
        return sorted(key.removeprefix(self.prefix) for key in keys)

    def read(self, name: str) -> bytes:
        """See Backend."""
        with self._errors(), self._absent(name):
            answer = self._s3().get_object(Bucket=self.bucket, Key=self.prefix + name)
            data: bytes = answer["Body"].read()
            return data

    def write(self, name: str, data: bytes) -> None:
        """See Backend."""
        with self._errors():
            self._s3().put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data)

    def upload(self, path: Path, name: str) -> None:
        """See Backend; large files go in parts."""
        with self._errors():
            self._s3().upload_file(str(path), self.bucket, self.prefix + name)

    def download(self, name: str, path: Path) -> None:
        """See Backend; an interrupted stream is read again."""
        with self._errors(), self._absent(name):
            self._s3().download_file(self.bucket, self.prefix + name, str(path))

    def remove(self, names: list[str]) -> None:
        """See Backend; one by one: not every S3 store removes many at once."""
        with self._errors():
            for name in names:
                self._s3().delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def _s3(self) -> Any:
        self._client = self._client or s3.client(**S3_TIMEOUTS)
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

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        fix = (
            "check bucket and prefix, the AWS credentials and their right to list, read, write and "
            f"delete there, AWS_ENDPOINT_URL for a store other than Amazon's, {ALTERNATIVE}"
        )
        return s3.refusals(f"{SETTING}: {self.uri}", TrainingError, fix)
