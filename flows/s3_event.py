"""S3 event notifications: which objects were created, whatever envelope they come in.

Understood: `Records` as Amazon and MinIO write them; the same inside SNS (`Message`, or `Sns` in a
record), inside SQS (`Body` or `body`, single or in `Messages` or `Records`), in any depth; and
EventBridge's own form (`detail`). Keys in `Records` are URL-encoded, with a plus for a blank;
EventBridge's are not. Removed objects, and the test event that Amazon sends first, are no data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

from tasks.contracts.errors import DataError

LISTS, TEXTS, NESTED = ("Records", "Messages"), ("Message", "Body", "body"), ("Sns",)
DEEPEST = 8  # envelopes


def created(text: str) -> list[str]:
    """The `s3://bucket/key` of every object that the event says was created, each once, in order.

    Raises DataError for text that is no such event.
    """
    try:
        found = list(_objects(json.loads(text), DEEPEST))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"not an S3 event notification ({type(error).__name__}: {error}): "
            f"{text.strip()[:200]!r}; pass on the JSON as the store, SNS, SQS or EventBridge wrote it"
        ) from error
    return list(dict.fromkeys(found))


def holds(source: str, uri: str) -> bool:
    """Whether a recipe's source is that object, or a prefix (a folder) above it."""
    path = source.removeprefix("s3://").rstrip("/")
    if path == "" or not source.startswith("s3://"):
        return False
    return uri == source or uri.startswith(f"s3://{path}/")


def _objects(event: Any, depth: int) -> Iterator[str]:
    """Raises what Python raises when a form is not the one it seems to be."""
    if not depth:
        raise ValueError(f"more than {DEEPEST} envelopes")
    inner = [one for name in LISTS if name in event for one in event[name]]
    inner += [json.loads(event[name]) for name in TEXTS if isinstance(event.get(name), str)]
    inner += [event[name] for name in NESTED if name in event]
    if "s3" in event:
        if event["eventName"].removeprefix("s3:").startswith("ObjectCreated"):
            found = event["s3"]
            yield f"s3://{found['bucket']['name']}/{unquote_plus(found['object']['key'])}"
    elif "detail" in event:
        if event["detail-type"] == "Object Created":
            found = event["detail"]
            yield f"s3://{found['bucket']['name']}/{found['object']['key']}"
    elif not inner and event.get("Event") != "s3:TestEvent" and not _empty(event):
        raise ValueError("it holds no Records, no message and no detail")
    for one in inner:
        yield from _objects(one, depth - 1)


def _empty(event: dict[str, Any]) -> bool:
    """An envelope with nothing in it, as a queue with no messages gives it."""
    return any(event.get(name) == [] for name in LISTS)
