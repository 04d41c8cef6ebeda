"""From generated token ids to the text that is given out: end tokens, stop strings, padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .reasoning import MARKS, may_begin_reasoning, split_reasoning
from .settings import SummarizerSettings, Summary


@dataclass(frozen=True)
class OutputRules:
    """What ends a summary (one of the end tokens, or one of the stop strings), and what is left out of it."""

    tokenizer: Any
    end_ids: list[int]
    stop: tuple[str, ...]
    strip_reasoning: bool = False  # reasoning that it begins with is no part of it

    def summary(self, ids: list[int], prompt_tokens: int, batch: int) -> Summary:
        """The summary that these token ids are; what follows an end token is not part of it."""
        length = self._length(ids)
        finished, ids = length < len(ids), ids[:length]
        # Padding: a stop string ended this summary while others of its batch were still written.
        while ids and ids[-1] == self.tokenizer.pad_token_id:
            ids = ids[:-1]
        text = self._decoded(ids)
        for stop in self.stop:
            if stop in text:
                text, finished = text[: text.index(stop)], True
        text = self._answer(text)
        return Summary(text.strip(), finished, prompt_tokens, len(ids), batch)

    def certain_text(self, ids: list[int]) -> str:
        """The part of an unfinished summary that no further token can change."""
        text = self._decoded(ids[: self._length(ids)])
        places = [text.index(stop) for stop in self.stop if stop in text]
        if places:
            return self._answer(text[: min(places)])
        text = text.rstrip("\ufffd")  # first: half a character may be part of a stop string
        begun = [n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        text = self._answer(text[: len(text) - max(begun, default=0)])
        return "" if self.strip_reasoning and may_begin_reasoning(text) else text

    def _answer(self, text: str) -> str:
        """The text, or what follows the reasoning that it begins with: nothing while that lasts."""
        return (split_reasoning(text)[1] or "") if self.strip_reasoning else text.strip()

    def _decoded(self, ids: list[int]) -> str:
        """Their text without special tokens, among which a tokenizer may count the marks of reasoning."""
        if self.strip_reasoning:
            added = self.tokenizer.added_tokens_decoder.items()
            special = {i for i, token in added if token.special and token.content not in MARKS}
            ids = [i for i in ids if i not in special]
        return str(self.tokenizer.decode(ids, skip_special_tokens=not self.strip_reasoning))

    def _length(self, ids: list[int]) -> int:
        """How many tokens come before the first end token."""
        return next((n for n, i in enumerate(ids) if i in self.end_ids), len(ids))


def greedy_arguments(
    rules: OutputRules, settings: SummarizerSettings, device: str
) -> dict[str, Any]:
    """Arguments of transformers' `generate` for greedy decoding under these rules."""
    from transformers import GenerationConfig

    # A config of our own: a base's generation_config may sample, or penalize repetition.
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=rules.end_ids or None,
        pad_token_id=rules.tokenizer.pad_token_id,
        stop_strings=list(rules.stop) or None,
        # The numbers are the same, wherever they are kept between two layers.
        cache_implementation="offloaded"
        if settings.kv_cache == "offloaded" and device != "cpu"
        else None,
    )
    return {"generation_config": config, "tokenizer": rules.tokenizer if rules.stop else None}
