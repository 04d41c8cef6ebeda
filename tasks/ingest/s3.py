"""Objects of an S3 store: listed, streamed to disk and checked."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts.errors import DataError
from tasks.ingest.row_types import DEFAULT_OPTIONS, ReadOptions, SourceFile
from tasks.processes import s3

CHUNK_BYTES = 1 << 20
TRIES = 3  # boto3 repeats a request by itself, but not a stream that was cut off
ADVICE = "check bucket and key, the AWS credentials, and AWS_ENDPOINT_URL for a store other than Amazon's"


@dataclass(frozen=True)
class Object:
    """One stored object."""

    bucket: str
    key: str
    etag: str
    size: int

    @property
    def uri(self) -> str:
        """Its address, as messages name it."""
        return f"s3://{self.bucket}/{self.key}"


def objects(key: str, uri: str) -> list[Object]:
    """The object with that key, or else all below it as a folder, in key order, without empty ones.

    Raises DataError when there is nothing, or the store refuses.
    """
    bucket, _, path = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise DataError(f"{key}: {uri} names no bucket; write s3://bucket/key")
    with _refusals(f"{key}: {uri}"):
        client = s3.client()
        exact = None if not path or path.endswith("/") else _head(client, bucket, path)
        listed = [exact] if exact else _below(client, bucket, path)
    if not listed:
        raise DataError(f"{key}: {uri}: no such object, and none below it; correct the key")
    if exact and not exact.size:
        raise DataError(f"{key}: {uri} is empty; put rows in it, or name another object")
    return [item for item in listed if item.size]


def download(item: Object, folder: Path, options: ReadOptions = DEFAULT_OPTIONS) -> SourceFile:
    """Stream an object into `folder`, in chunks of a MiB.

    Checked against what the store states: always the size; the ETag where it is an MD5 (no multipart
    upload, no KMS key); the object's SHA-256 or CRC32 where the store has one. `verified` names the
    checks. Raises DataError when the bytes differ, or the store refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(item.key).name
    with _refusals(item.uri):
        client = s3.client()
        for _ in range(TRIES - 1):
            with contextlib.suppress(*_broken_streams()):
                return _fetch(client, item, path, options)
        return _fetch(client, item, path, options)


def _fetch(
    client: Any, item: Object, path: Path, options: ReadOptions = DEFAULT_OPTIONS
) -> SourceFile:
    # IfMatch: the object must still be the one that was listed, and digested.
    answer = client.get_object(
        Bucket=item.bucket, Key=item.key, IfMatch=f'"{item.etag}"', ChecksumMode="ENABLED"
    )
    md5, sha256, crc, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0, 0
    with path.open("wb") as file:
        for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
            file.write(chunk)
            md5.update(chunk)
            sha256.update(chunk)
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    stated = _stated_digests(item, answer)
    computed = {
        "size": str(size),
        "etag-md5": md5.hexdigest(),
        "sha256": base64.b64encode(sha256.digest()).decode(),
        "crc32": base64.b64encode(crc.to_bytes(4, "big")).decode(),
    }
    for name, value in stated.items():
        if computed[name] != value:
            raise DataError(
                f"{item.uri}: {name} of the downloaded bytes is {computed[name]}, the store says "
                f"{value}: damaged in transfer or in the store; run again, or upload it again"
            )
    return SourceFile(item.uri, path, size, sha256.hexdigest(), tuple(stated), options=options)


def _stated_digests(item: Object, answer: dict[str, Any]) -> dict[str, str]:
    """Size and digests of the bytes as the store states them."""
    stated = {"size": str(item.size)}
    etag_is_md5 = len(item.etag) == 32 and not answer.get("SSECustomerAlgorithm")
    if etag_is_md5 and not str(answer.get("ServerSideEncryption", "")).startswith("aws:kms"):
        stated["etag-md5"] = item.etag
    for name, header in (("sha256", "ChecksumSHA256"), ("crc32", "ChecksumCRC32")):
        value = answer.get(header, "")
        if value and "-" not in value:  # "-N": a checksum of the parts' checksums, not of the bytes
            stated[name] = value
    return stated


def _head(client: Any, bucket: str, key: str) -> Object | None:
    from botocore.exceptions import ClientError

    try:
        answer = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return None
        raise
    return Object(bucket, key, answer["ETag"].strip('"'), answer["ContentLength"])


def _below(client: Any, bucket: str, path: str) -> list[Object]:
    prefix = path if not path or path.endswith("/") else path + "/"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    listed = [
        Object(bucket, item["Key"], item["ETag"].strip('"'), item["Size"])
        for page in pages
        for item in page.get("Contents", [])
    ]
    return sorted(listed, key=lambda item: item.key)


def _broken_streams() -> tuple[type[Exception], ...]:
    from botocore import exceptions as e

    return (e.ResponseStreamingError, e.IncompleteReadError, e.ReadTimeoutError)


def _refusals(where: str) -> contextlib.AbstractContextManager[None]:
    return s3.refusals(where, DataError, ADVICE)
