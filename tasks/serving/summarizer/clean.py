"""What is a usable text, and how it is cleaned: one code for rows that are trained on and for texts that
a served model is given.

CRLF becomes LF. Nothing else is changed: neither a lone CR, nor the Unicode form, nor white space around a
text.
"""

from __future__ import annotations

import re
from numbers import Number
from typing import Any

_LINE_END = re.compile(r"\r+\n")  # \r\r\n too: a text cleaned twice must be the text cleaned once
_KINDS = {"NoneType": "null", "dict": "an object", "list": "a list", "bytes": "binary"}


def fault_of(value: Any) -> str:
    """What makes a value no usable text, as "is null, not text"; empty for a text."""
    if not isinstance(value, str):
        kind = "null" if is_null(value) else _KINDS.get(type(value).__name__, "")
        return f"is {kind or 'a number or truth value'}, not text"
    if not value.strip():
        return "is blank"
    if not any(character.isprintable() and not character.isspace() for character in value):
        return "is blank (it holds only characters that nobody sees)"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode (half a surrogate pair)"
    return ""


def is_null(value: Any) -> bool:
    """None, and what tables write for it: NaN, pandas' NA and NaT."""
    return (
        value is None
        or type(value).__name__ in {"NAType", "NaTType"}
        or (isinstance(value, Number) and value != value)  # noqa: PLR0124 - NaN
    )


def clean(text: str) -> str:
    """The text with CRLF as LF."""
    return _LINE_END.sub("\n", text)
