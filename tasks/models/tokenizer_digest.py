"""The digest of a model folder's tokenizer: losses a token are comparable only under the same one.

Reads files only: neither torch nor transformers is loaded. Champions have this digest as a tag: if its
definition changed, earlier champions could no longer be compared by loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.contracts import digest

# What decides into which tokens a text is split. Padding and truncation are the caller's.
DATA = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
SETTINGS = (
    *("add_bos_token", "add_eos_token", "bos_token", "eos_token", "unk_token"),
    *("add_prefix_space", "do_lower_case", "legacy", "tokenizer_class"),
)
CALLERS = {"padding", "truncation"}


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 (hex) that two model folders share when texts are split into the same tokens by both.

    Independent of how the JSON is laid out; another spelling of the same settings may differ, which
    can refuse a valid comparison but never allows an invalid one.
    """
    file = folder / "tokenizer.json"
    if file.is_file():
        parts = json.loads(file.read_text(encoding="utf-8"))
        deciding = {name: part for name, part in parts.items() if name not in CALLERS}
    else:
        files = [folder / name for name in DATA if (folder / name).is_file()]
        deciding = {path.name: digest.of_file(path) for path in files}
    return digest.of_value([deciding, _settings(folder / "tokenizer_config.json")])


def _settings(path: Path) -> dict[str, Any]:
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings = {name: _text(config[name]) for name in SETTINGS if name in config}
    if "tokenizer_class" in settings:  # a slow class and its fast twin agree
        settings["tokenizer_class"] = str(settings["tokenizer_class"]).removesuffix("Fast")
    return settings


def _text(value: Any) -> Any:
    """A special token is stored as text, or as an object around the text."""
    return value["content"] if isinstance(value, dict) and "content" in value else value
