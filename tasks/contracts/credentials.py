"""Credentials in texts: refused where a recipe is read, and blanked in everything that is shown.

The one function for that is `redact`. Libraries that look for secrets (detect-secrets, trufflehog) search
files for what might be one; here a text must lose what is one by its place, and nothing else.
"""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
# user:password@, also where the password holds a slash; a port is followed by a slash, and is none
_PASSWORD = re.compile(
    r"(?<!github)(://[^\s/?#'\"@:]*:)(?!:|\d{1,5}(?:[/?#\s'\"),;]|$))"
    r"[^\s'\"]*(?=@)"
)
_TOKEN_FIRST = re.compile(
    r"(://)(?!\*\*\*:)[^\s/?#'\"@:]+(?=:@)"
)  # a token as user, and an empty password
_USER = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)(?P<user>[^\s/?#'\"@:]+)(?=@)")
_SECRET = (
    r"[\w.-]*(?:passw(?:or)?d|pwd|passphrase|token|secret|signature|credentials?|api[_-]?key|access[_-]?key"
    r"(?:[_-]?id)?|private[_-]?key|auth)"
)
_QUERY = re.compile(rf"([?&;](?:{_SECRET}|sig|key|pass|sas)=)[^&;#\s'\"]+", re.IGNORECASE)
# By name in a sentence only what cannot be a tokenizer's: "pad_token: <|end|>" stays.
_NAMED = re.compile(
    r"(\b[\w.-]*(?:passw(?:or)?d|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key|authorization|"
    r"(?:hf|hub|access|auth|api|bearer|refresh|session|security|github|gitlab|tracking)[_-]token)[\w.-]*"
    r"['\"]?\s*[=:]\s*(?:(?:Bearer|Basic)\s+)?['\"]?)[^\s,;&'\"*]{6,}",
    re.IGNORECASE,
)
# What the issuers write in front of their tokens, so that they are found anywhere.
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|A[KS]IA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|"
    r"glpat-[\w-]{16,}|sk-[\w-]{20,}|xox[abpr]-[\w-]{10,}|pnu_[A-Za-z0-9]{20,}|pnb_[A-Za-z0-9]{20,}|"
    r"dapi[0-9a-f]{32}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
)
_LONG_TOKEN = 20  # a user's name is shorter
# What stands before @ there is a container's or a user's name, however long.
NAMES_BEFORE_AT = ("abfs", "wasb", "sftp", "ssh", "github")


def redact(text: str) -> str:
    """The text with `***` in place of passwords, tokens and keys: in URIs, queries, and settings by name."""
    return _NAMED.sub(rf"\1{MASK}", _of_uris(text))


def holds_credentials(text: str) -> bool:
    """Whether a value of a recipe holds a password, token or key."""
    return _of_uris(text) != text


def places(values: Any, where: str = "") -> list[str]:
    """The settings among nested values (`data.train`) that hold credentials."""
    if isinstance(values, str):
        return [where] if holds_credentials(values) else []
    if isinstance(values, dict):
        items = [(f"{where}.{key}" if where else str(key), value) for key, value in values.items()]
    elif isinstance(values, list | tuple):
        items = [(f"{where}[{number}]", value) for number, value in enumerate(values)]
    else:
        return []
    return [place for name, value in items for place in places(value, name)]


def _of_uris(text: str) -> str:
    text = _PASSWORD.sub(rf"\1{MASK}", _TOKEN_FIRST.sub(rf"\1{MASK}", text))
    text = _USER.sub(_mask_token, text)
    return _TOKEN.sub(MASK, _QUERY.sub(rf"\1{MASK}", text))


def _mask_token(match: re.Match[str]) -> str:
    """TOKEN@host: over HTTP all that stands there alone is one; else what is too long for a name."""
    user, scheme = match["user"], match["scheme"]
    if scheme.lower().startswith(NAMES_BEFORE_AT):
        return match[0]
    web = scheme.lower() in ("http://", "https://")
    long = len(user) >= _LONG_TOKEN and any(letter.isdigit() for letter in user)
    return f"{scheme}{MASK}" if (web or long) and user != MASK else match[0]
