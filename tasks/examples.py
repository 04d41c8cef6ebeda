"""Canonical rows as token ids: the very prompt ids that are served, and a label mask.

Training learns from these, and the merge's drift check compares models on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import package
from tasks.errors import DataError, TrainingError
from tasks.recipe import Recipe
from tasks.records import Row
from tasks.summarizer import SummarizerSettings, encode, encode_completion

IGNORED = -100  # torch's label for "no loss here"


@dataclass(frozen=True)
class Examples:
    """Token ids and labels, one list an example; `truncated`: completions cut at the limit."""

    input_ids: list[list[int]]
    labels: list[list[int]]
    truncated: int


def encode_for(rows: Sequence[Row], tokenizer: Any, recipe: Recipe, base: Path) -> Examples:
    """`encode_rows` with the recipe's settings, fitted to the base's context."""
    limit = package.context_for(recipe, base)
    return encode_rows(rows, tokenizer, package.settings_for(recipe, base), limit)


def encode_rows(
    rows: Sequence[Row], tokenizer: Any, settings: SummarizerSettings, limit: int
) -> Examples:
    """Every document with each of its references, prompt + completion cut to `limit` tokens.

    A cut completion has no end-of-text: the model must not learn to stop in mid-sentence.
    Raises DataError when there are no rows, TrainingError when the prompt template alone is too long.
    """
    if not rows:
        raise DataError("the training data hold no rows; name others in data.train")
    ids, labels, truncated = [], [], 0
    for row in rows:
        try:
            prompt = encode(tokenizer, row.document, settings)
        except ValueError as error:
            raise TrainingError(str(error)) from error
        for reference in row.references:
            completion = encode_completion(tokenizer, reference)
            truncated += len(prompt) + len(completion) > limit
            ids.append((prompt + completion)[:limit])
            labels.append(([IGNORED] * len(prompt) + completion)[:limit])
    return Examples(ids, labels, truncated)
