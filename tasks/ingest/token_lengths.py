"""Lengths in tokens of prompts and references, as training and serving will see them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.contracts.errors import RecipeError
from tasks.contracts.recipe import Prompt
from tasks.ingest.lengths import Lengths, Meter, too_long
from tasks.ingest.row_types import Example
from tasks.ingest.tokenizer import Tokenizer, load_tokenizer, require_tokenizer
from tasks.serving.summarizer import DOCUMENT, SummarizerSettings, filled, fit, values_of


def meter_for(folder: Path, settings: SummarizerSettings, prompt: Prompt) -> Meter:
    """The meter for these settings, with the tokenizer of a model folder.

    Raises BaseModelError when there is no tokenizer, RecipeError when the prompt cannot be written.
    """
    if settings.format == "chat":
        from tasks.ingest.chat_lengths import ChatMeter

        require_tokenizer(folder)
        return ChatMeter(folder, settings, prompt)
    return TemplateMeter(load_tokenizer(folder), settings, prompt)


class TemplateMeter:
    """Measures documents, or several texts by name, within the prompt template."""

    def __init__(self, tokenizer: Tokenizer, settings: SummarizerSettings, prompt: Prompt) -> None:
        """Raises RecipeError when the template alone is longer than a prompt may be, or parts of a
        document (map_reduce) would not be twice as long as their summaries.
        """
        self.tokenizer, self.settings, self.refuse = tokenizer, settings, prompt.truncate == "error"
        bare = filled(settings.template, dict.fromkeys(settings.inputs or (DOCUMENT,), ""))
        template_tokens = len(tokenizer(bare)["input_ids"])
        if template_tokens > settings.max_source_tokens:
            raise RecipeError(
                f"prompt.template alone is {template_tokens} tokens, and a prompt may have "
                f"{settings.max_source_tokens}; shorten it, or raise prompt.max_source_tokens"
            )
        document_tokens = settings.max_source_tokens - template_tokens
        if settings.summarize == "map_reduce" and 2 * settings.max_new_tokens > document_tokens:
            # Otherwise the summaries of three or more parts could be as long as the parts.
            raise RecipeError(
                f"prompt.summarize map_reduce: a part of a document may have {document_tokens} tokens and "
                f"its summary {settings.max_new_tokens}, over half of that: summaries of summaries "
                "would not get shorter; lower evaluation.max_new_tokens, or raise "
                "prompt.max_source_tokens or training.max_length"
            )

    def measure(self, examples: Sequence[Example]) -> list[Lengths | str]:
        """Lengths of each example, or the problem with it: too long where nothing may be cut."""
        prompts = [
            filled(self.settings.template, values_of(example.document, self.settings))
            for example in examples
        ]
        lengths = self.tokenizer.lengths(prompts)
        texts = [text.strip() for example in examples for text in example.references]
        summaries = iter(self.tokenizer.lengths(texts, add_special_tokens=False))
        return [
            self._lengths(example, length, tuple(next(summaries) for _ in example.references))
            for example, length in zip(examples, lengths, strict=True)
        ]

    def _lengths(self, example: Example, prompt: int, summaries: tuple[int, ...]) -> Lengths | str:
        limit = self.settings.max_source_tokens
        if prompt <= limit:
            return Lengths(prompt, 0, summaries)
        if self.refuse:
            return too_long(prompt, limit)
        _, cut = fit(self.tokenizer, example.document, self.settings)
        return Lengths(prompt, cut, summaries)
