"""Split the batches of one process between several ranks, so that each step learns the very same rows.

Batches are assigned in turn: with two ranks, the first and second batch of one process are one step
of both. Where an epoch's last round has too few rows, accelerate's sampler repeats the epoch's first
ones; here padding rows, which are not learned, take their place, as if one process had trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler

from tasks.models.encoding import IGNORED


class PaddedSampler(Sampler):  # type: ignore[misc]
    """Row indices in the order of one process, then the padding row's up to a whole round.

    Index `rows` is the padding row; `round_rows` is the number of rows that all ranks take at once.
    """

    def __init__(self, rows: int, round_rows: int, seed: int) -> None:
        self.order = SeedableRandomSampler(range(rows), data_seed=seed)
        self.rows, self.missing = rows, -rows % round_rows

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [self.rows] * self.missing

    def __len__(self) -> int:
        return self.rows + self.missing

    def set_epoch(self, epoch: int) -> None:
        """Shuffle as that epoch does."""
        self.order.set_epoch(epoch)


def with_padding_row(dataset: Any, pad: int) -> Any:
    """The dataset with one more row, of a single token that is not learned."""
    from datasets import Dataset, concatenate_datasets

    padding = {"input_ids": [[pad]], "labels": [[IGNORED]], "seq_lengths": [[1]]}
    row = {name: padding[name] for name in dataset.column_names}
    return concatenate_datasets([dataset, Dataset.from_dict(row, features=dataset.features)])


class PaddingRowFilter:
    """A collator that drops padding rows, except from batches that hold nothing else."""

    def __init__(self, inner: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.inner = inner

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """As the inner collator; `real_tokens` is 0 for a batch of padding rows."""
        rows = [row for row in examples if list(row["labels"]) != [IGNORED]]
        if rows:
            return self.inner(rows)
        return self.inner(examples[:1]) | {"real_tokens": 0}
