"""Canonical rows as token ids: the same prompt ids that are served, and labels.

Training learns from these, and the merge's drift check compares models on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.contracts.documents import Document
from tasks.contracts.errors import DataError, TrainingError
from tasks.contracts.records import Row
from tasks.models.prepared_base import PreparedBase
from tasks.serving.summarizer import (
    SummarizerSettings,
    encode,
    encode_answer,
    encode_completion,
    messages_of,
)

IGNORED = -100  # torch's label for "no loss here"


@dataclass(frozen=True)
class Examples:
    """Token ids and labels, one list an example; `truncated`: completions cut at the limit."""

    input_ids: list[list[int]]
    labels: list[list[int]]
    truncated: int


def encode_for(rows: Sequence[Row], tokenizer: Any, base: PreparedBase) -> Examples:
    """`encode_rows` with the settings of the base that is trained."""
    return encode_rows(rows, tokenizer, base.settings, base.max_row_tokens)


def encode_rows(
    rows: Sequence[Row], tokenizer: Any, settings: SummarizerSettings, limit: int
) -> Examples:
    """Every document with each of its references, prompt + completion cut to `limit` tokens.

    A cut completion has no end-of-text: the model must not learn to stop in mid-sentence. In chat
    format all answers of a conversation are completions, but those of weight 0.
    Raises DataError when there are no rows, TrainingError when the prompt template alone is too long.
    """
    if not rows:
        raise DataError("the training data hold no rows; name others in data.train")
    ids, labels, truncated = [], [], 0
    for row in rows:
        try:
            sequences = list(_sequences(row, tokenizer, settings))
        except ValueError as error:
            raise TrainingError(str(error)) from error
        for sequence, learned in sequences:
            truncated += len(sequence) > limit
            ids.append(sequence[:limit])
            labels.append(learned[:limit])
    return Examples(ids, labels, truncated)


def _sequences(
    row: Row, tokenizer: Any, settings: SummarizerSettings
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and labels of a row."""
    if settings.format == "chat" and not isinstance(row.document, dict):
        yield from _conversation(row, tokenizer, settings)
        return
    if isinstance(row.document, dict):  # one question, cut within its longest text
        for reference in row.references:
            prompt, completion, _ = encode_answer(tokenizer, row.document, reference, settings)
            yield prompt + completion, [IGNORED] * len(prompt) + completion
        return
    prompt = encode(tokenizer, row.document, settings)
    for reference in row.references:
        completion = encode_completion(tokenizer, reference)
        yield prompt + completion, [IGNORED] * len(prompt) + completion


def _conversation(
    row: Row, tokenizer: Any, settings: SummarizerSettings
) -> list[tuple[list[int], list[int]]]:
    """Every answer of a conversation (weight 0: context), learned once, after the prompt ids served for it.

    An answer whose prompt starts with the sequence so far is appended to it, so that a conversation is
    one sequence. A new sequence starts where the prompt differs: oldest turns dropped because they no
    longer fit, a template that writes past turns differently, several references of the last question.
    """
    assert not isinstance(row.document, dict)
    messages = messages_of(row.document, settings.system)
    context = _context(row.document)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    answered = [
        (messages[:index], messages[index]["content"])
        for number, index in enumerate(answers)
        if number not in context
    ]
    answered += [(messages, reference) for reference in row.references]
    sequences: list[tuple[list[int], list[int]]] = []
    between: list[int] = []  # what the template writes after an answer's end
    for before, answer in answered:
        prompt, completion, after = encode_answer(tokenizer, before, answer, settings)
        labels: list[int] = []
        if sequences:
            so_far = sequences[-1][0] + between
            if prompt[: len(so_far)] == so_far:
                labels = sequences.pop()[1]
        labels = labels + [IGNORED] * (len(prompt) - len(labels)) + completion
        sequences.append((prompt + completion, labels))
        between = after
    return sequences


def _context(document: Document) -> set[int]:
    """Which of a conversation's answers, counted from 0, are context: they have the weight 0."""
    if not isinstance(document, list):
        return set()
    answers = [message for message in document if message["role"] == "assistant"]
    return {number for number, answer in enumerate(answers) if answer.get("weight") == 0}
