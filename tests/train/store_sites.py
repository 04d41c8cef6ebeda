"""Checkpoint stores for tests: a folder, and a bucket of a real S3 server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3_server

KINDS = ["folder", pytest.param("s3", marks=pytest.mark.full)]


class Site:
    """A store that is there until it vanishes, as a share or a server does."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.ending = contextlib.ExitStack()

    def vanish(self) -> None:
        """From now on the store cannot be reached."""
        self.ending.close()


@contextmanager
def site(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A store of that kind, empty, whose files lie below `folder`."""
    root = folder / "share" / "bucket"
    root.mkdir(parents=True)
    if kind == "folder":
        opened = Site(str(root))
        opened.ending.callback(lambda: root.rename(folder / "gone"))
    else:
        opened = Site("s3://bucket/some/prefix/")
        endpoint = opened.ending.enter_context(s3_server.running(root.parent))
        for name, value in s3_server.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    try:
        yield opened
    finally:
        opened.vanish()
