"""Lengths in tokens of prompts and references, as training and serving will see them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tasks.contracts.errors import RecipeError
from tasks.contracts.recipe import Prompt
from tasks.ingest.lengths import Lengths, Meter, too_long
from tasks.ingest.row_types import Example
from tasks.ingest.tokenizer import Tokenizer
from tasks.ingest.tokenizer_check import TextTrials, check_tokenizer
from tasks.models.embedding import embedding_rows
from tasks.serving.summarizer import DOCUMENT, SummarizerSettings, filled, fit, frame, values_of

# How chat templates mark a turn; as text they say nothing to a model that has learnt them as tokens.
MARK = re.compile(r"<\|[^|<>\s]{1,30}\|>|<(?:start|end)_of_turn>|</?s>|<(?:bos|eos)>")


def _is_special(mark: str, tokenizer: Tokenizer) -> bool:
    [ids] = tokenizer.ids([mark])
    return len(ids) == 1


def _refuse_doubled_ends(
    template: Sequence[int], settings: SummarizerSettings, tokenizer: Tokenizer
) -> None:
    """Raises RecipeError where the template writes what the tokenizer puts before a text, or ends a text."""
    if not template:
        return
    start = frame(tokenizer.loaded)[0]
    if template[0] in start and not settings.template.startswith("{"):
        token = tokenizer.loaded.convert_ids_to_tokens(template[0])
        raise RecipeError(
            f"prompt.template begins with {token}, which the tokenizer puts before every text, so that "
            "the model would read it twice; remove it from the template"
        )
    if template[-1] == tokenizer.loaded.eos_token_id and not settings.template.endswith("}"):
        raise RecipeError(
            f"prompt.template ends in {tokenizer.loaded.eos_token}, the end of a text: there is nothing "
            "to write after it; remove it from the template"
        )


def _refuse_no_room(template_tokens: int, settings: SummarizerSettings) -> None:
    """Raises RecipeError where the template leaves a document no room, or too little for map_reduce."""
    document_tokens = settings.max_source_tokens - template_tokens
    if document_tokens < 0:
        raise RecipeError(
            f"prompt.template alone is {template_tokens} tokens, and a prompt may have "
            f"{settings.max_source_tokens}; shorten it, or raise prompt.max_source_tokens"
        )
    if settings.summarize == "map_reduce" and 2 * settings.max_new_tokens > document_tokens:
        # Otherwise the summaries of three or more parts could be as long as the parts.
        raise RecipeError(
            f"prompt.summarize map_reduce: a part of a document may have {document_tokens} tokens and "
            f"its summary {settings.max_new_tokens}, over half of that: summaries of summaries "
            "would not get shorter; lower evaluation.max_new_tokens, or raise "
            "prompt.max_source_tokens or training.max_length"
        )


def meter_for(folder: Path, settings: SummarizerSettings, prompt: Prompt) -> Meter:
    """The meter for these settings, with the tokenizer of a model folder.

    Raises BaseModelError when there is no tokenizer that keeps texts, RecipeError when the prompt cannot
    be written.
    """
    tokenizer, rows = Tokenizer(folder), embedding_rows(folder)
    notes = check_tokenizer(tokenizer, folder, rows)
    trials = TextTrials(tokenizer, rows)
    if settings.format == "chat":
        from tasks.ingest.chat_lengths import ChatMeter

        return ChatMeter(tokenizer, settings, prompt, trials, notes)
    return TemplateMeter(tokenizer, settings, prompt, trials, notes)


class TemplateMeter:
    """Measures documents, or several texts by name, within the prompt template."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: SummarizerSettings,
        prompt: Prompt,
        trials: TextTrials,
        notes: list[str],
    ) -> None:
        """Raises RecipeError when the template alone is longer than a prompt may be, or ends a text, or
        parts of a document (map_reduce) would not be twice as long as their summaries.
        """
        self.tokenizer, self.settings, self.refuse = tokenizer, settings, prompt.truncate == "error"
        self.trials, self._notes = trials, notes
        bare = filled(settings.template, dict.fromkeys(settings.inputs or (DOCUMENT,), ""))
        [template] = tokenizer.ids([bare])
        self.special_in_template = trials.specials(template)
        self.framing_tokens = len(frame(tokenizer.loaded)[0])
        _refuse_doubled_ends(template, settings, tokenizer)
        marks = dict.fromkeys(MARK.findall(bare))
        if unknown := [mark for mark in marks if not _is_special(mark, tokenizer)]:
            notes.append(
                f"prompt.template holds {', '.join(unknown)}, no special token of this tokenizer: the model "
                "reads it as text, letter by letter"
            )
        _refuse_no_room(self.framing_tokens + len(template), settings)

    def measure(self, examples: Sequence[Example]) -> list[Lengths | str]:
        """Lengths of each example, or the problem with it: too long, or no text that can be learned."""
        values = [values_of(example.document, self.settings) for example in examples]
        prompts = self.tokenizer.ids([filled(self.settings.template, v) for v in values])
        texts = [text.strip() for example in examples for text in example.references]
        summaries = iter(zip(texts, self.tokenizer.ids(texts), strict=True))
        return [
            self._measured(
                example, list(v.values()), prompt, [next(summaries) for _ in example.references]
            )
            for example, v, prompt in zip(examples, values, prompts, strict=True)
        ]

    def notes(self) -> list[str]:
        """What is worth knowing of the tokenizer and of the texts measured so far."""
        return self._notes + self.trials.notes()

    def _measured(
        self,
        example: Example,
        texts: list[str],
        prompt: list[int],
        summaries: list[tuple[str, list[int]]],
    ) -> Lengths | str:
        for text, ids in summaries:
            if problem := self.trials.of_reference(text, ids):
                return problem
        may_spell = self.trials.specials(prompt) != self.special_in_template
        if problem := self.trials.of_document(texts, prompt, may_spell):
            return problem
        lengths = tuple(len(ids) for _, ids in summaries)
        return self._lengths(example, self.framing_tokens + len(prompt), lengths)

    def _lengths(self, example: Example, prompt: int, summaries: tuple[int, ...]) -> Lengths | str:
        limit = self.settings.max_source_tokens
        if prompt <= limit:
            return Lengths(prompt, 0, summaries)
        if self.refuse:
            return too_long(prompt, limit)
        _, cut = fit(self.tokenizer.loaded, example.document, self.settings)
        return Lengths(prompt, cut, summaries)
