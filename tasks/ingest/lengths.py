"""An example's lengths in tokens, and what measures them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tasks.ingest.row_types import Example

if TYPE_CHECKING:
    from tasks.ingest.tokenizer import Tokenizer
    from tasks.serving.summarizer import SummarizerSettings


@dataclass(frozen=True, slots=True)
class Lengths:
    """One example in tokens."""

    prompt: int  # the whole prompt before any cut, special tokens included
    cut: int  # tokens of the document that do not fit
    summaries: tuple[int, ...]  # each reference, end-of-text not counted


class Meter(Protocol):
    """Measures examples as the model will see them."""

    settings: SummarizerSettings
    tokenizer: Tokenizer

    def measure(self, examples: Sequence[Example]) -> list[Lengths | str]:
        """Lengths of each example, or the problem with it: too long, or no text that can be learned."""

    def notes(self) -> list[str]:
        """What is worth knowing of the tokenizer, the template and the texts measured so far."""


def too_long(prompt: int, limit: int) -> str:
    """The problem with a row whose document does not fit and must not be cut."""
    return (
        f"makes a prompt of {prompt} tokens, over the {limit} allowed; shorten it, raise "
        "prompt.max_source_tokens or set prompt.truncate"
    )
