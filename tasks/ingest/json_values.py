"""JSON values as rows: decoded with Python's json, repeated names of an object noticed."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tasks.ingest.messages import is_messages
from tasks.ingest.row_types import RAW_CHARACTERS, Raw, shown

KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a truth value"}


class Repeated(dict[str, Any]):
    """An object of which the file has some names twice; Python's json keeps the last of each."""

    names: tuple[str, ...] = ()


def repeated_in(value: Any) -> list[str]:
    """Names that this object, or one inside it, has twice in the file."""
    if isinstance(value, list):
        return [name for item in value for name in repeated_in(item)]
    if not isinstance(value, dict):
        return []
    inside = [name for item in value.values() for name in repeated_in(item)]
    return [*value.names, *inside] if isinstance(value, Repeated) else inside


class Decoder:
    """Decodes JSON; `repeated`: names that objects of the last value had twice."""

    def __init__(self) -> None:
        self.repeated: list[str] = []
        self._json = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            value = Repeated(value)
            value.names = tuple(name for name, count in counts.items() if count > 1)
            self.repeated += value.names
        return value

    def whole(self, text: str) -> Any:
        """The text's one value. Raises ValueError (JSONDecodeError) or RecursionError."""
        self.repeated = []
        return self._json.decode(text)

    def next(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at `at`, and where it ends. Raises as `whole`."""
        self.repeated = []
        return self._json.raw_decode(text, at)

    def row(self, line: int, value: Any, text: str) -> Raw:
        """The last value, or a part of it, as a row; `text`: as the file has it."""
        if not isinstance(value, dict):
            return Raw(
                line,
                None,
                _no_object(value),
                text[:RAW_CHARACTERS],
            )
        if self.repeated and (names := repeated_in(value)):
            problem = f"has {shown(names)} twice in one object; keep one of each"
            return Raw(line, None, problem, text[:RAW_CHARACTERS])
        return Raw(line, value)


def _no_object(value: Any) -> str:
    if is_messages(value):
        return (
            "is a list of messages, and a row is an object with columns; write each list under a name: "
            '{"messages": [...]}'
        )
    kind = KINDS.get(type(value), "null")
    return f"is {kind}, and a row is an object with columns; correct or remove it"


def is_too_long(text: str, limit: int) -> bool:
    """Whether the text has over `limit` bytes in UTF-8."""
    if len(text) * 4 <= limit:
        return False
    return len(text) > limit or len(text.encode(errors="surrogateescape")) > limit


def too_long(limit: int) -> str:
    """The problem with a row over the limit."""
    return f"is longer than data.max_row_bytes ({limit}); shorten it, or raise the setting"
