"""The keys and values of all slots, in one flat buffer a layer, as large as memory allows or needs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .settings import RESERVED_BYTES

ROUND_TOKENS = 4096  # a GPU's buffers hold a multiple of it, so that they seldom grow


def reachable_bytes(device: Any = None) -> int:
    """Bytes of a GPU's memory that this process holds or could still take, within a share set for it."""
    free, total = torch.cuda.mem_get_info(device)
    share = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    reserved: int = torch.cuda.memory_reserved(device)
    return min(int(free) + reserved, share)


class KeyValueCache:
    """`keys` and `values`, a tensor a layer: [heads, tokens + 1, width].

    A slot is a stretch of tokens as long as its prompt and its longest summary. What belongs to no slot
    is written at `scratch_index`, the last place, which is never read.
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self.layers = config.num_hidden_layers
        self.heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self.device, self.dtype = model.device, model.dtype
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.scratch_index = -1

    def max_tokens(self) -> int:
        """How many tokens' keys and values the GPU could hold, those in the buffers included."""
        bytes_per_token: int = 2 * self.layers * self.heads * self.width * self.dtype.itemsize
        allocated: int = torch.cuda.memory_allocated(self.device)
        free = reachable_bytes(self.device) - allocated
        return max((free - RESERVED_BYTES) // bytes_per_token, 0) + max(self.scratch_index, 0)

    def reserve(
        self, lengths: list[int], before_growing: Callable[[], None]
    ) -> tuple[list[int], bool]:
        """Where slots of these lengths begin, as many as there is room for, and whether buffers grew.

        `before_growing` is called before old buffers are given back and larger ones taken. Raises
        RuntimeError (out of memory) when not even the first slot fits.
        """
        ends = list(itertools.accumulate(lengths))
        most = self.max_tokens() if self.device.type == "cuda" else ends[-1]
        fitting = [end for end in ends if end <= most]
        if not fitting:
            raise RuntimeError(f"out of memory: keys and values of {ends[0]} tokens do not fit")
        grows = fitting[-1] > self.scratch_index
        if grows:
            before_growing()
            self.keys, self.values = [], []
            tokens = min(-(-fitting[-1] // ROUND_TOKENS) * ROUND_TOKENS, most)
            self.keys = [self._buffer(tokens) for _ in range(self.layers)]
            self.values = [self._buffer(tokens) for _ in range(self.layers)]
            self.scratch_index = tokens
        return [0, *fitting[:-1]], grows

    def _buffer(self, tokens: int) -> Tensor:
        shape = self.heads, tokens + 1, self.width
        return torch.zeros(*shape, dtype=self.dtype, device=self.device)

    def write(
        self, layer: int, places: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write a step's keys and values [heads, tokens, width]; returns the layer's buffers."""
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(1, places, key.to(keys.dtype))  # Phi's keys come in float32
        values.index_copy_(1, places, value)
        return keys, values
