"""The base's tokenizer without torch, called as Hugging Face's are, many texts at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from tasks.contracts.errors import BaseModelError


class Tokenizer(Protocol):
    """What `summarizer.fit` calls, and lengths of many texts at once."""

    def __call__(
        self, text: str, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        """`input_ids`, and with `return_offsets_mapping` each token's (start, end) in the text."""

    def lengths(self, texts: list[str], add_special_tokens: bool = True) -> list[int]:
        """Number of tokens of each text."""


class FastTokenizer:
    """`tokenizer.json` through the tokenizers library alone: loads in milliseconds."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer as Loaded

        self._loaded = Loaded.from_file(str(file))
        self._loaded.no_truncation()
        self._loaded.no_padding()

    def __call__(
        self, text: str, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        """One text's `input_ids` and `offset_mapping`."""
        encoding = self._loaded.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoding.ids, "offset_mapping": encoding.offsets}

    def lengths(self, texts: list[str], add_special_tokens: bool = True) -> list[int]:
        """Number of tokens of each text."""
        encodings = self._loaded.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [len(encoding.ids) for encoding in encodings]

    def special_tokens(self) -> list[str]:
        """The special tokens that it adds around a text."""
        tokens: list[str] = self._loaded.encode("").tokens
        return tokens


class SlowTokenizer:
    """Any other tokenizer, through transformers (an import of ten seconds)."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._loaded = AutoTokenizer.from_pretrained(folder)

    def __call__(
        self, text: str, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        """One text's `input_ids` and, on request, `offset_mapping`."""
        return dict(
            self._loaded(
                text,
                add_special_tokens=add_special_tokens,
                return_offsets_mapping=return_offsets_mapping,
            )
        )

    def lengths(self, texts: list[str], add_special_tokens: bool = True) -> list[int]:
        """Number of tokens of each text."""
        ids = self._loaded(texts, add_special_tokens=add_special_tokens)["input_ids"]
        return [len(text_ids) for text_ids in ids]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises BaseModelError when there is none."""
    require_tokenizer(folder)
    file = folder / "tokenizer.json"
    if file.is_file():
        fast = FastTokenizer(file)
        configured = _special_tokens(folder)
        if configured is None or configured == fast.special_tokens():
            return fast
    return SlowTokenizer(folder)


def require_tokenizer(folder: Path) -> None:
    """Raise BaseModelError when a model folder has no tokenizer."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise BaseModelError(f"{folder} has no tokenizer.json; save the tokenizer beside the model")


def _special_tokens(folder: Path) -> list[str] | None:
    """What tokenizer_config.json adds around a text; None: it leaves that to tokenizer.json."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return None
    tokens = [
        config.get(f"{side}_token") for side in ("bos", "eos") if config.get(f"add_{side}_token")
    ]
    return [token["content"] if isinstance(token, dict) else token for token in tokens if token]
