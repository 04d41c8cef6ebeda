"""S3 notifications: which objects came, in every envelope they arrive in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flows.s3_event import created, holds
from tasks.contracts.errors import DataError


def record(key: str, event: str = "ObjectCreated:Put", bucket: str = "b") -> dict[str, Any]:
    """A record as Amazon writes it, cut to what matters."""
    return {
        "eventSource": "aws:s3",
        "eventName": event,
        "s3": {"bucket": {"name": bucket}, "object": {"key": key}},
    }


BARE = {"Records": [record("in/a%2Bb+c.jsonl")]}
TEXT = json.dumps(BARE)
ENVELOPES = {
    "amazon": BARE,
    "minio": {
        "EventName": "s3:ObjectCreated:Put",
        "Key": "b/in/a+b c.jsonl",
        "Records": [record("in%2Fa%2Bb+c.jsonl", "s3:ObjectCreated:Put")],
    },
    "sns": {"Type": "Notification", "Message": TEXT},
    "sns to lambda": {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": TEXT}}]},
    "sqs": {"Messages": [{"Body": TEXT}]},
    "sqs to lambda": {"Records": [{"eventSource": "aws:sqs", "body": TEXT}]},
    "sns through sqs": {"Messages": [{"Body": json.dumps({"Message": TEXT})}]},
    "eventbridge": {
        "source": "aws.s3",
        "detail-type": "Object Created",
        "detail": {"bucket": {"name": "b"}, "object": {"key": "in/a+b c.jsonl"}},
    },
}


@pytest.mark.parametrize("kind", ENVELOPES)
def test_an_object_is_found_in_its_envelope(kind: str) -> None:
    """Keys are decoded where they are encoded: `+` is a blank in Records, itself in EventBridge."""
    assert created(json.dumps(ENVELOPES[kind])) == ["s3://b/in/a+b c.jsonl"]


def test_only_created_objects_count_each_once() -> None:
    """Removals, the test event and an empty queue bring no data."""
    two = {"Records": [record("x"), record("gone", "ObjectRemoved:Delete"), record("x")]}
    assert created(json.dumps(two)) == ["s3://b/x"]
    assert created('{"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"}') == []
    assert created('{"Messages": []}') == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", '"x"', "{}", '{"Records": [{}]}', '{"Message": "hello"}', TEXT[:-9]],
)
def test_anything_else_is_refused_in_words(text: str) -> None:
    """What cannot be understood is never taken for `nothing came`."""
    with pytest.raises(DataError, match="not an S3 event notification"):
        created(text)


def test_a_source_holds_itself_and_what_lies_below() -> None:
    """As ingest reads it: an object, or a folder with or without its slash; no mere prefix."""
    uri = "s3://b/in/day.jsonl"
    assert all(holds(s, uri) for s in (uri, "s3://b/in", "s3://b/in/", "s3://b", "s3://b/"))
    assert not any(
        holds(s, uri) for s in ("s3://b/i", "s3://b/in/day", "s3://c", "in", "", "s3://")
    )
