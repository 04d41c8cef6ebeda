"""Which tokenizer a model folder has: two losses a token can be compared only where it is the same.

Reads files alone: neither torch nor transformers is loaded. Champions bear this digest as a tag: with
another definition here, those of before could no longer be compared by loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.contracts import digest

# What decides into which tokens a text falls. Padding and truncation are the caller's.
DATA = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
SETTINGS = (
    *("add_bos_token", "add_eos_token", "bos_token", "eos_token", "unk_token"),
    *("add_prefix_space", "do_lower_case", "legacy", "tokenizer_class"),
)
CALLERS = {"padding", "truncation"}


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 (hex) that two model folders share when texts fall into the same tokens in both.

    Independent of how the JSON is laid out; another spelling of the same settings may differ, which
    refuses a comparison too many and never allows one too many.
    """
    whole = folder / "tokenizer.json"
    if whole.is_file():
        parts = json.loads(whole.read_text(encoding="utf-8"))
        found = {name: part for name, part in parts.items() if name not in CALLERS}
    else:
        there = [folder / name for name in DATA if (folder / name).is_file()]
        found = {path.name: digest.of_file(path) for path in there}
    return digest.of_value([found, _settings(folder / "tokenizer_config.json")])


def _settings(path: Path) -> dict[str, Any]:
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = {name: _plain(config[name]) for name in SETTINGS if name in config}
    if "tokenizer_class" in found:  # a slow class and its fast twin agree
        found["tokenizer_class"] = str(found["tokenizer_class"]).removesuffix("Fast")
    return found


def _plain(value: Any) -> Any:
    """A special token is kept as text, or as an object around it."""
    return value["content"] if isinstance(value, dict) and "content" in value else value
