"""Tokenizers that cannot be repeated, or whose code is not ours to run, are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts.errors import BaseModelError
from tasks.ingest.tokenizer import Tokenizer
from tasks.ingest.tokenizer_check import check_tokenizer


@pytest.mark.parametrize(
    ("config", "dropout", "says"),
    [
        (None, 0.2, "splits the same text otherwise each time.*set dropout to null"),
        (None, 0.001, "splits the same text otherwise each time"),
        ({"split_special_tokens": True}, None, "set split_special_tokens: false"),
        (
            {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"},
            None,
            "is code of its own .*, and precis runs none",
        ),
    ],
)
def test_a_tokenizer_that_is_not_the_same_each_time_or_not_ours_to_run(
    config: dict[str, Any] | None,
    dropout: float | None,
    says: str,
    byte_tokenizer: Path,
    tmp_path: Path,
) -> None:
    """Dropout, special tokens read as text, or code of the base's own."""
    model = json.loads((byte_tokenizer / "tokenizer.json").read_text())["model"] | {
        "dropout": dropout
    }
    tokenizer = tmp_path / "t"
    shutil.copytree(byte_tokenizer, tokenizer)
    for name, values in (("tokenizer", {"model": model}), ("tokenizer_config", config or {})):
        file = tokenizer / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
    (tokenizer / "own.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(BaseModelError, match=says):
        check_tokenizer(Tokenizer(tokenizer), tokenizer, None)
