"""Against a real S3 server, `rclone serve s3`."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3_server
from botocore.response import StreamingBody
from ingest_files import Ingest, jsonl, rows

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data
from tasks.ingest import s3
from tasks.ingest.sources import source_digest

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with s3_server.running(folder) as found:
        yield found


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the server, which ingest reaches through the environment alone."""
    for name, value in s3_server.environment(endpoint).items():
        monkeypatch.setenv(name, value)
    return boto3.client("s3")


def put(bucket: Any, key: str, path: str) -> None:
    bucket.upload_file(path, "bucket", key)


def test_object_and_prefix(bucket: Any, tmp_path: Path, ingest: Ingest) -> None:
    """An object, and all objects below a prefix, are rows like local files; checksums are named."""
    train = jsonl(tmp_path / "t.jsonl", rows(20))
    put(bucket, "one/t.jsonl", train)
    put(bucket, "parts/a.jsonl", jsonl(tmp_path / "a.jsonl", rows(3, 50)))
    put(bucket, "parts/b.jsonl", jsonl(tmp_path / "b.jsonl", rows(3, 60)))
    put(bucket, "parts-not/c.jsonl", jsonl(tmp_path / "c.jsonl", rows(3, 70)))
    made = ingest(train="s3://bucket/one/t.jsonl", evaluation="s3://bucket/parts")
    assert (made.train_rows, made.evaluation_rows) == (20, 6)
    assert [row.id for row in ingest.rows("evaluation")][2:4] == ["a:3", "b:1"]
    (file,) = ingest.report()["inputs"]["data.train"]["files"]
    assert file["name"] == "s3://bucket/one/t.jsonl"
    assert file["sha256"] == hashlib.sha256(Path(train).read_bytes()).hexdigest()
    assert file["verified"] == ["size", "etag-md5", "crc32"]
    local = ingest(train=train, evaluation=str(tmp_path / "a.jsonl"))
    assert local.train_digest == made.train_digest


def test_a_folder_holds_the_same_on_s3(bucket: Any, tmp_path: Path, ingest: Ingest) -> None:
    """Hidden files and checkpoints are left out on S3 as on a local disk, and the same files are listed."""
    evaluation = jsonl(tmp_path / "dev.jsonl", rows(3, 900))
    folder = tmp_path / "same"
    names = ("a.jsonl", "b/c.jsonl", ".ipynb_checkpoints/a.jsonl", "b/_old/c.jsonl", "README.md")
    for n, name in enumerate(names):
        put(bucket, f"same/{name}", jsonl(folder / name, rows(3, 10 * n)))
    made = []
    for train in (str(folder), "s3://bucket/same"):
        digest = ingest(train=train, evaluation=evaluation).train_digest
        source = ingest.report()["inputs"]["data.train"]
        read = [file["name"].removeprefix(train) for file in source["files"]]
        left_out = [name.removeprefix(train) for name in source["ignored"]]
        made.append((digest, read, left_out))
    assert made[0] == made[1]
    assert made[0][1:] == (
        ["/a.jsonl", "/b/c.jsonl"],
        ["/.ipynb_checkpoints/", "/README.md", "/b/_old/"],
    )


def test_source_digest_without_download(bucket: Any, tmp_path: Path) -> None:
    """The key follows the objects' ETags: changed content changes it."""
    put(bucket, "key/t.jsonl", jsonl(tmp_path / "t.jsonl", rows(20)))
    before = source_digest(Data(train="s3://bucket/key/"))
    assert source_digest(Data(train="s3://bucket/key/")) == before
    time.sleep(1.1)  # the server caches an ETag by size and time of the file
    put(bucket, "key/t.jsonl", jsonl(tmp_path / "t.jsonl", reversed(rows(20))))
    assert source_digest(Data(train="s3://bucket/key/")) != before


def test_missing(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing key, a missing bucket, wrong keys and no server are errors that say how to fix them."""
    with pytest.raises(DataError, match=r"data\.train: s3://bucket/none\.jsonl: no such object"):
        source_digest(Data(train="s3://bucket/none.jsonl"))
    with pytest.raises(DataError, match=r"no-bucket/t.jsonl: .*(NoSuchBucket|no such object)"):
        source_digest(Data(train="s3://no-bucket/t.jsonl"))
    with pytest.raises(DataError, match="names no bucket"):
        source_digest(Data(train="s3:///t.jsonl"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong" * 5)
    with pytest.raises(DataError, match="check bucket and key, the AWS credentials"):
        source_digest(Data(train="s3://bucket/none.jsonl"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DataError, match="AWS_ENDPOINT_URL"):
        source_digest(Data(train="s3://bucket/none.jsonl"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    with pytest.raises(DataError, match=r"Invalid endpoint: 127\.0\.0\.1:9; check bucket"):
        source_digest(Data(train="s3://bucket/none.jsonl"))


def test_changed_in_between(bucket: Any, tmp_path: Path) -> None:
    """An object that is no longer the one that was listed is refused."""
    put(bucket, "change/t.jsonl", jsonl(tmp_path / "t.jsonl", rows(5)))
    (item,) = s3.objects("data.train", "s3://bucket/change/t.jsonl")
    down = s3.download(item, tmp_path / "down")
    assert down.path.read_bytes() == (tmp_path / "t.jsonl").read_bytes()
    other = s3.Object(item.bucket, item.key, "0" * 32, item.size)
    with pytest.raises(DataError, match=r"change/t\.jsonl: "):
        s3.download(other, tmp_path / "down")


def test_damage_is_noticed(bucket: Any, tmp_path: Path) -> None:
    """Bytes damaged on the way are refused, not read: whichever checksum the store has."""
    put(bucket, "damage/t.jsonl", jsonl(tmp_path / "t.jsonl", rows(5)))
    (item,) = s3.objects("data.train", "s3://bucket/damage/t.jsonl")
    real = boto3.client("s3")
    with pytest.raises(DataError, match=r"of the downloaded bytes is .*, the store says"):
        s3._fetch(DamagingClient(real), item, tmp_path / "down.jsonl")


def test_a_broken_stream_is_read_again(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that is cut off starts again; one that always is, is an error."""
    put(bucket, "broken/t.jsonl", jsonl(tmp_path / "t.jsonl", rows(5)))
    (item,) = s3.objects("data.train", "s3://bucket/broken/t.jsonl")
    client = BreakingClient(boto3.client("s3"), times=2)
    monkeypatch.setattr("tasks.processes.s3.client", lambda: client)
    down = s3.download(item, tmp_path / "down")
    assert down.path.read_bytes() == (tmp_path / "t.jsonl").read_bytes()
    client.times = 3
    with pytest.raises(DataError, match=r"broken/t\.jsonl: "):
        s3.download(item, tmp_path / "down")


class BreakingClient:
    """A client whose connection drops in the middle of an object, some times."""

    def __init__(self, real: Any, times: int) -> None:
        self.real, self.times = real, times

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        answer = {**self.real.get_object(**arguments)}
        if self.times:
            self.times -= 1
            data = answer["Body"].read()
            answer["Body"] = StreamingBody(io.BytesIO(data[: len(data) // 2]), len(data))
        return answer


class DamagingClient:
    """A client on whose way one bit is flipped."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        answer = {**self.real.get_object(**arguments | {"ChecksumMode": "ENABLED"})}
        data = bytearray(answer["Body"].read())
        data[7] ^= 1
        answer["Body"] = StreamingBody(io.BytesIO(bytes(data)), len(data))
        return answer
