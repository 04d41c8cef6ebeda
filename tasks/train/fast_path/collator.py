"""Batches of packed rows whose shapes never change, made on the CPU.

Fixed shapes let a compiled layer be compiled once; and what depends on a batch (the longest row,
the tokens that are learned) is found here, where finding it does not make a GPU wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tasks.models.encoding import IGNORED

MULTIPLE = 64  # completion tokens are filled up to a multiple: a matrix product's granularity


class Steady:
    """Fills up what TRL's padding-free collator makes of packed sequences.

    `tokens` is the size of every batch, `rows` no less than the rows of any; `embed` (ids [tokens]
    -> [tokens, width]) gives batches their `inputs_embeds` where the embedding lies on the host.
    """

    def __init__(
        self,
        inner: Callable[[list[dict[str, Any]]], dict[str, Any]],
        tokens: int,
        rows: int,
        pad: int,
    ) -> None:
        self.inner, self.tokens, self.rows, self.pad = inner, tokens, rows, pad
        self.embed: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of `tokens` tokens; what is filled in is a row of its own that is not learned.

        `input_ids`, `labels`, `position_ids` [1, tokens]; `bounds` [rows + 2] (int32), the last
        ones equal; `learned_at` and `learned` (padded with IGNORED): where a completion token is
        predicted, and which; `longest`, `row_count` and `real_tokens`: numbers.
        """
        batch = self.inner(examples)
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        used, missing = len(ids), self.tokens - len(ids)
        bounds = batch["cu_seq_lens_q"].tolist()
        if missing < 0 or len(bounds) > self.rows + 1:
            raise ValueError(
                f"a batch of {used} tokens in {len(bounds) - 1} rows where at most {self.tokens} "
                f"in {self.rows} were counted"
            )
        labels = torch.nn.functional.pad(labels, (0, missing), value=IGNORED)
        ids = torch.nn.functional.pad(ids, (0, missing), value=self.pad)
        at = (labels[1:] != IGNORED).nonzero()[:, 0]
        spare = -len(at) % MULTIPLE if len(at) else MULTIPLE
        found = {
            "input_ids": ids[None],
            "labels": labels[None],
            "position_ids": torch.cat([batch["position_ids"][0], torch.arange(missing)])[None],
            "bounds": torch.tensor(
                bounds + [self.tokens] * (self.rows + 2 - len(bounds)), dtype=torch.int32
            ),
            "learned_at": torch.nn.functional.pad(at, (0, spare)),
            "learned": torch.nn.functional.pad(labels[at + 1], (0, spare), value=IGNORED),
            "longest": max(int(batch["max_length_q"]), missing),
            "row_count": len(bounds) - (missing == 0),
            "real_tokens": batch.get("real_tokens", used),
        }
        if self.embed is not None:
            found["inputs_embeds"] = self.embed(ids)[None]
        return found


def most_rows(lengths: list[list[int]], batch: int) -> int:
    """No batch of `batch` packed sequences has more rows; `lengths` are their rows' lengths."""
    return sum(sorted(map(len, lengths), reverse=True)[:batch])
