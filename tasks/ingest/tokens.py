"""Lengths in tokens without torch: the base's tokenizer, called as Hugging Face's are, in batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tasks.contracts.errors import BaseModelError, RecipeError
from tasks.contracts.recipe import Prompt
from tasks.ingest.row_types import Example

if TYPE_CHECKING:  # the module imports MLflow, which costs a second
    from tasks.serving.summarizer import SummarizerSettings


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
        """What it adds around a text by itself."""
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
        """One text's `input_ids` and, if wanted, `offset_mapping`."""
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
        return [len(one) for one in ids]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises BaseModelError when there is none."""
    require_tokenizer(folder)
    file = folder / "tokenizer.json"
    if file.is_file():
        fast = FastTokenizer(file)
        wanted = _special_tokens(folder)
        if wanted is None or wanted == fast.special_tokens():
            return fast
    return SlowTokenizer(folder)


def require_tokenizer(folder: Path) -> None:
    """Raise BaseModelError when a model folder has no tokenizer."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise BaseModelError(f"{folder} has no tokenizer.json; save the tokenizer beside the model")


def _special_tokens(folder: Path) -> list[str] | None:
    """What tokenizer_config.json asks to add around a text; None: it leaves that to the file."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return None
    tokens = [
        config.get(f"{side}_token") for side in ("bos", "eos") if config.get(f"add_{side}_token")
    ]
    return [token["content"] if isinstance(token, dict) else token for token in tokens if token]


@dataclass(frozen=True, slots=True)
class Lengths:
    """One example in tokens."""

    prompt: int  # the whole prompt before any cut, special tokens included
    cut: int  # tokens of the document that do not fit
    summaries: tuple[int, ...]  # each reference, end-of-text not counted


def meter_for(folder: Path, settings: SummarizerSettings, prompt: Prompt) -> Meter:
    """The meter for these settings, with the tokenizer of a model folder.

    Raises BaseModelError when there is no tokenizer, RecipeError when the prompt cannot be written.
    """
    if settings.format == "chat":
        from tasks.ingest.chat_tokens import ChatMeter

        require_tokenizer(folder)
        return ChatMeter(folder, settings, prompt)
    return Meter(load_tokenizer(folder), settings, prompt)


class Meter:
    """Measures examples as the model will see them."""

    def __init__(self, tokenizer: Tokenizer, settings: SummarizerSettings, prompt: Prompt) -> None:
        """Raises RecipeError when the template alone is longer than a prompt may be, or parts of a
        document (map_reduce) would be hardly longer than their summaries.
        """
        self.tokenizer, self.settings, self.refuse = tokenizer, settings, prompt.truncate == "error"
        self.before, self.after = settings.template.split("{document}")
        bare = len(tokenizer(self.before + self.after)["input_ids"])
        if bare > settings.max_source_tokens:
            raise RecipeError(
                f"prompt.template alone is {bare} tokens, and a prompt may have "
                f"{settings.max_source_tokens}; shorten it, or raise prompt.max_source_tokens"
            )
        room = settings.max_source_tokens - bare
        if settings.summarize == "map_reduce" and 2 * settings.max_new_tokens > room:
            # Else a text of three parts or more could be no shorter after its parts are summarized.
            raise RecipeError(
                f"prompt.summarize map_reduce: a part of a document may have {room} tokens and its "
                f"summary {settings.max_new_tokens}, over half of that, so that summaries of summaries "
                "would not get short; lower evaluation.max_new_tokens, or raise "
                "prompt.max_source_tokens or training.max_length"
            )

    def measure(self, examples: Sequence[Example]) -> list[Lengths | str]:
        """Lengths of each example, or the problem with it: too long where nothing may be cut."""
        prompts = [self.before + example.document + self.after for example in examples]
        lengths = self.tokenizer.lengths(prompts)
        texts = [text.strip() for example in examples for text in example.references]
        summaries = iter(self.tokenizer.lengths(texts, add_special_tokens=False))
        return [
            self._one(example, length, tuple(next(summaries) for _ in example.references))
            for example, length in zip(examples, lengths, strict=True)
        ]

    def _one(self, example: Example, prompt: int, summaries: tuple[int, ...]) -> Lengths | str:
        most = self.settings.max_source_tokens
        if prompt <= most:
            return Lengths(prompt, 0, summaries)
        if self.refuse:
            return too_long(prompt, most)
        from tasks.serving.summarizer import fit

        _, cut = fit(self.tokenizer, example.document, self.settings)
        return Lengths(prompt, cut, summaries)


def too_long(prompt: int, most: int) -> str:
    """The problem with a row of which nothing may be cut."""
    return (
        f"makes a prompt of {prompt} tokens, over the {most} allowed; shorten it, raise "
        "prompt.max_source_tokens or set prompt.truncate"
    )
