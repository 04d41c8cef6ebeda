"""Deal the batches of one process out to several, so that each step learns the very same rows.

Batches go round: with two processes, the first and second batch of one are a step of both. Where an
epoch's last round has too few, accelerate repeats the epoch's first rows; here what is missing is
nothing, as for one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler

from tasks.models.encoding import IGNORED


class Rounds(Sampler):  # type: ignore[misc]
    """Numbers of `rows` rows in the order of one process, then of nothing up to whole rounds.

    Nothing has the number `rows`; `round_rows` is what all processes take at once.
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
        """The order of that epoch."""
        self.order.set_epoch(epoch)


def with_nothing(dataset: Any, pad: int) -> Any:
    """The dataset with one more row, of a single token that is not learned."""
    from datasets import Dataset, concatenate_datasets

    nothing = {"input_ids": [[pad]], "labels": [[IGNORED]], "seq_lengths": [[1]]}
    row = {name: nothing[name] for name in dataset.column_names}
    return concatenate_datasets([dataset, Dataset.from_dict(row, features=dataset.features)])


class Present:
    """Leaves nothing out of batches, but of those that would be empty."""

    def __init__(self, inner: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.inner = inner

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """As the inner collator; `real_tokens` is 0 for a batch of nothing."""
        there = [row for row in examples if list(row["labels"]) != [IGNORED]]
        if there:
            return self.inner(there)
        return self.inner(examples[:1]) | {"real_tokens": 0}
