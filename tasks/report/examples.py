"""Single rows worth reading: where the challenger won and lost most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.contracts.documents import plain_text, shown_text
from tasks.contracts.metrics import sign
from tasks.contracts.records import Prediction

SHOWN = 5


@dataclass(frozen=True)
class Example:
    """One evaluation row as both models summarized it."""

    challenger: Prediction
    opponent: Prediction
    gain: float  # in the primary metric: positive is better
    change: float  # of the primary metric itself: of a loss the gain's negative

    @property
    def words(self) -> int:
        """Length of the document."""
        return len(plain_text(self.challenger.document).split())

    @property
    def document(self) -> str:
        """The document as a reader knows it."""
        return shown_text(self.challenger.document)


def examples(
    challenger: Sequence[Prediction], opponent: Sequence[Prediction], metric: str
) -> list[Example]:
    """All rows, paired by id, from the largest gain to the largest loss; ties by id."""
    opponents = {row.id: row for row in opponent}
    changes = {row.id: row.scores[metric] - opponents[row.id].scores[metric] for row in challenger}
    pairs = [
        Example(row, opponents[row.id], sign(metric) * changes[row.id], changes[row.id])
        for row in challenger
    ]
    return sorted(pairs, key=lambda example: (-example.gain, example.challenger.id))


def wins(ordered: Sequence[Example]) -> list[Example]:
    """The five largest gains, largest first; a tie is no gain."""
    return [example for example in ordered[:SHOWN] if example.gain > 0]


def losses(ordered: Sequence[Example]) -> list[Example]:
    """The five largest losses, largest first."""
    return [example for example in ordered[: -SHOWN - 1 : -1] if example.gain < 0]
