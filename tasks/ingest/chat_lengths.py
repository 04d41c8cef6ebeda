"""Lengths of conversations in tokens, written by the chat template, and what it cannot write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.contracts.documents import plain_text
from tasks.contracts.errors import RecipeError
from tasks.contracts.recipe import Prompt
from tasks.ingest.chat import MARKS
from tasks.ingest.chat_template_check import Messages, check_chat_template, row_problem, try_apart
from tasks.ingest.lengths import Lengths, too_long
from tasks.ingest.row_types import Example
from tasks.ingest.tokenizer import Tokenizer
from tasks.ingest.tokenizer_check import TextTrials
from tasks.models.template_trial import Rendering

if TYPE_CHECKING:
    from tasks.serving.summarizer import SummarizerSettings

TRIED_APART = 100  # rows whose rendering is tried in a process with limits
MOST_CHARACTERS = 4 << 20  # of these rows together: the process has little memory


class ChatMeter:
    """Measures conversations as the model will see them, and refuses texts that hold the chat's marks."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: SummarizerSettings,
        prompt: Prompt,
        trials: TextTrials,
        notes: list[str],
    ) -> None:
        """Raises RecipeError when the template cannot write a conversation, or is too long alone."""
        from tasks.serving.summarizer import answer_end

        self.tokenizer, self.settings, self.refuse = tokenizer, settings, prompt.truncate == "error"
        self.trials, self.tried_apart = trials, 0
        self._notes = notes + check_chat_template(tokenizer, settings, trials.rows)
        in_template = {mark for mark in MARKS if mark in (settings.chat_template or "")}
        end = answer_end(tokenizer.loaded, settings)[0]
        self.forbidden = sorted(in_template | ({end} if end else set()))

    def notes(self) -> list[str]:
        """What is worth knowing of tokenizer, template and the texts measured so far."""
        return self._notes + self.trials.notes()

    def measure(self, examples: Sequence[Example]) -> list[Lengths | str]:
        """Lengths of each example, or the problem with it. Raises RecipeError as `try_apart`."""
        apart = self._rendered_apart(examples[: TRIED_APART - self.tried_apart])
        self.tried_apart += len(apart)
        problems = [*apart, *([None] * (len(examples) - len(apart)))]
        return [
            problem or self._measured(example)
            for example, problem in zip(examples, problems, strict=True)
        ]

    def _rendered_apart(self, examples: Sequence[Example]) -> list[str | None]:
        """What the template does to these rows, each with its answer, in a process with limits."""
        conversations: list[Messages] = []
        problems: list[str | None] = []
        characters = 0
        for example in examples:
            characters += len(plain_text(example.document))
            if characters > MOST_CHARACTERS:
                break
            try:
                conversations.append(self._answered(example))
                problems.append(None)
            except ValueError as error:
                problems.append(str(error))
        if not conversations:
            return problems
        try:
            written = try_apart(self.tokenizer.loaded, self.settings, conversations).renderings
        except RecipeError as error:
            raise RecipeError(
                f"{error} (tried with the first {len(conversations)} rows)"
            ) from error
        tried = zip(written, conversations, strict=True)
        return [problem or self._problem(*next(tried)) for problem in problems]

    def _problem(self, rendering: Rendering, messages: Messages) -> str | None:
        return row_problem(rendering, messages, self.settings)

    def _answered(self, example: Example) -> Messages:
        from tasks.serving.summarizer import conversation_of

        messages = conversation_of(example.document, self.settings)
        return [*messages, {"role": "assistant", "content": example.references[0].strip()}]

    def _measured(self, example: Example) -> Lengths | str:
        from tasks.serving.summarizer import conversation_of, fit_chat, render

        texts = [text.strip() for text in example.references]
        answers = self.tokenizer.ids(texts)
        try:
            messages = conversation_of(example.document, self.settings)
            contents = [message["content"] for message in messages]
            self._refuse_marks([*contents, *texts])
            for text, ids in zip(texts, answers, strict=True):
                if problem := self.trials.of_reference(text, ids):
                    return problem
            before = render(self.tokenizer.loaded, messages, self.settings)
            [prompt] = self.tokenizer.ids([before])
            if problem := self.trials.of_document(contents, prompt):
                return problem
            self._require_answers(messages, before, texts)
            cut = 0
            if len(prompt) > self.settings.max_source_tokens:
                if self.refuse:
                    return too_long(len(prompt), self.settings.max_source_tokens)
                cut = fit_chat(self.tokenizer.loaded, example.document, self.settings)[1]
        except ValueError as error:
            return str(error)
        return Lengths(len(prompt), cut, tuple(map(len, answers)))

    def _require_answers(self, messages: Messages, before: str, texts: list[str]) -> None:
        """Raise ValueError unless each answer stands right after the prompt that generation sees."""
        from tasks.serving.summarizer import render, require_continued

        for text in texts:
            answered = [*messages, {"role": "assistant", "content": text}]
            whole = render(self.tokenizer.loaded, answered, self.settings)
            require_continued(before, whole, text, self.settings)

    def _refuse_marks(self, texts: list[str]) -> None:
        """A mark inside a message would be read as the end of it, in training and in serving."""
        for text in texts:
            for mark in self.forbidden:
                if mark in text:
                    raise ValueError(
                        f"holds {mark} within a message, a mark of the chat; remove it"
                    )
