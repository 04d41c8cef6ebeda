"""S3 event notifications: which objects were created, in any of the usual envelopes.

It reads `Records` as Amazon and MinIO write them; the same inside SNS (`Message`, or `Sns` in a record)
and SQS (`Body` or `body`, alone or in `Messages` or `Records`), nested or not; and EventBridge's form
(`detail`). Keys in `Records` are URL-encoded, with a plus for a space; EventBridge's are not. Removed
objects, and the test event that Amazon sends first, are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

from tasks.contracts.errors import DataError

LISTS, TEXTS, NESTED = ("Records", "Messages"), ("Message", "Body", "body"), ("Sns",)
MAX_DEPTH = 8  # nested envelopes


def created(text: str) -> list[str]:
    """The `s3://bucket/key` of every object that was created, each once, in the event's order.

    Raises DataError for text that is no such event.
    """
    try:
        uris = list(_objects(json.loads(text), MAX_DEPTH))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"not an S3 event notification ({type(error).__name__}: {error}): "
            f"{text.strip()[:200]!r}; pass the JSON as the store, SNS, SQS or EventBridge wrote it"
        ) from error
    return list(dict.fromkeys(uris))


def holds(source: str, uri: str) -> bool:
    """Whether a recipe's source is that object, or a folder (a prefix) that it is in."""
    path = source.removeprefix("s3://").rstrip("/")
    if path == "" or not source.startswith("s3://"):
        return False
    return uri == source or uri.startswith(f"s3://{path}/")


def _objects(event: Any, depth: int) -> Iterator[str]:
    """Raises KeyError, TypeError and so on if the event is not of the form that it seems to be."""
    if not depth:
        raise ValueError(f"more than {MAX_DEPTH} envelopes")
    inner = [item for name in LISTS if name in event for item in event[name]]
    inner += [json.loads(event[name]) for name in TEXTS if isinstance(event.get(name), str)]
    inner += [event[name] for name in NESTED if name in event]
    if "s3" in event:
        if event["eventName"].removeprefix("s3:").startswith("ObjectCreated"):
            s3 = event["s3"]
            yield f"s3://{s3['bucket']['name']}/{unquote_plus(s3['object']['key'])}"
    elif "detail" in event:
        if event["detail-type"] == "Object Created":
            detail = event["detail"]
            yield f"s3://{detail['bucket']['name']}/{detail['object']['key']}"
    elif not inner and event.get("Event") != "s3:TestEvent" and not _empty(event):
        raise ValueError("it holds no Records, no message and no detail")
    for item in inner:
        yield from _objects(item, depth - 1)


def _empty(event: dict[str, Any]) -> bool:
    """Whether it is an envelope without content, as a queue without messages gives it."""
    return any(event.get(name) == [] for name in LISTS)
