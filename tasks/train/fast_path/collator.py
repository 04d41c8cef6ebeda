"""Batches of packed rows whose shapes never change, made on the CPU.

With fixed shapes a layer is compiled once. What depends on a batch (the longest row, the tokens that
are learned) is computed here on the CPU, so that no GPU has to wait for it. TRL's packing ("bfd")
and its padding-free collator are used inside; on their own they give each batch another length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tasks.models.encoding import IGNORED

MULTIPLE = 64  # completion tokens are padded to a multiple: the tile size of a matrix product


class FixedShapeCollator:
    """Pads the batches that TRL's padding-free collator makes of packed sequences.

    `tokens` is the size of every batch, `rows` the most rows of any batch; `embed` (ids [tokens] ->
    [tokens, width]) computes `inputs_embeds` where the embedding is kept in the host's memory.
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
        """A batch of `tokens` tokens; the padding is a row of its own that is not learned.

        `input_ids`, `labels`, `position_ids` [1, tokens]; `bounds` [rows + 2] (int32), unused ones
        equal to `tokens`; `learned_at` and `learned` (padded with IGNORED): positions whose logits
        predict a completion token, and that token; `longest`, `row_count` and `real_tokens`: integers.
        Raises ValueError for a batch of more tokens or rows than that.
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
        padded = {
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
            padded["inputs_embeds"] = self.embed(ids)[None]
        return padded


def max_rows_per_batch(lengths: list[list[int]], batch: int) -> int:
    """The most rows in any `batch` packed sequences; `lengths`: the rows' lengths of each sequence."""
    return sum(sorted(map(len, lengths), reverse=True)[:batch])
