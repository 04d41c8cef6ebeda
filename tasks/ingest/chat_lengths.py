"""Lengths of conversations in tokens, written by the chat template, and what it cannot write.

The template is rendered by transformers, an import of ten seconds: other recipes do without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from tasks.contracts.recipe import Prompt
from tasks.ingest.chat import MARKS
from tasks.ingest.chat_template_check import check_chat_template, rendered_tokens
from tasks.ingest.lengths import Lengths, too_long
from tasks.ingest.row_types import Example

if TYPE_CHECKING:
    from tasks.serving.summarizer import SummarizerSettings


class ChatMeter:
    """Measures conversations as the model will see them, and refuses texts that hold the chat's marks."""

    def __init__(self, folder: Path, settings: SummarizerSettings, prompt: Prompt) -> None:
        """Raises RecipeError when the template cannot write a conversation, or is too long alone."""
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.settings, self.refuse = settings, prompt.truncate == "error"
        added = self.tokenizer.added_tokens_decoder.values()
        special = {*self.tokenizer.all_special_tokens, *(t.content for t in added if t.special)}
        in_template = {mark for mark in MARKS if mark in (settings.chat_template or "")}
        self.forbidden = sorted(in_template | special)
        check_chat_template(self.tokenizer, settings)

    def measure(self, examples: Sequence[Example]) -> list[Lengths | str]:
        """Lengths of each example, or the problem with it."""
        return [self._measured(example) for example in examples]

    def _measured(self, example: Example) -> Lengths | str:
        from tasks.serving.summarizer import conversation_of, fit_chat

        try:
            messages = conversation_of(example.document, self.settings)
            self._refuse_marks([*(m["content"] for m in messages), *example.references])
            prompt = rendered_tokens(self.tokenizer, messages, self.settings)
            cut = 0
            if prompt > self.settings.max_source_tokens:
                if self.refuse:
                    return too_long(prompt, self.settings.max_source_tokens)
                cut = fit_chat(self.tokenizer, example.document, self.settings)[1]
        except ValueError as error:
            return str(error)
        except TemplateError as error:
            return f"cannot be written by the chat template ({error}); correct or remove the row"
        answers = [
            self.tokenizer(text.strip(), add_special_tokens=False) for text in example.references
        ]
        return Lengths(prompt, cut, tuple(len(answer["input_ids"]) for answer in answers))

    def _refuse_marks(self, texts: list[str]) -> None:
        """A mark inside a message would be read as the end of it, in training and in serving."""
        for text in texts:
            for mark in self.forbidden:
                if mark in text:
                    raise ValueError(
                        f"holds {mark} within a message, a mark of the chat; remove it"
                    )
