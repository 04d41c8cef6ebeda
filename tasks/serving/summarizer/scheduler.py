"""Continuous decoding: greedy summaries of many prompts at once.

Each prompt has a slot: a stretch of one flat cache of keys and values, as long as the prompt and its
longest summary, so attention reads no padding. Prompts are read packed one after another (prefill), then
all slots write a token a step; a finished sequence's slot goes to the next prompt (Yu et al. 2022, Orca,
OSDI). Longest prompts come first, so that every later one fits the slot that it gets.

Considered: transformers' `generate_batch` needs flash-attn or kernels from the hub (without them one
dense mask over everything that is cached). vLLM 0.25.1, measured beside this on an H200, takes 1.4 to 4.3
times as long for an evaluation of 200 documents, for its start, writes other texts in float32 unless it
is told to (454 of 500 the same), and is an engine of its own to install; a registered model needs torch
and transformers alone. Figures: docs/benchmarks.md, "Evaluation by vLLM".
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from .cache import KeyValueCache
from .steps import PREFILL_ROWS, SlotSteps

# Of a prefill's tokens: below it, free slots wait for more, since a prefill costs the same when empty.
PREFILL_SHARE = 0.75
DECODE_STEPS = 8  # tokens that a GPU writes between two looks at which slots have finished


class ContinuousDecoder:
    """Writes greedily what `generate` would write, for any number of prompts, through `slots` slots."""

    def __init__(
        self, model: Any, tokenizer: Any, config: Any, *, slots: int, longest: int
    ) -> None:
        """`config`: a complete GenerationConfig; `longest`: tokens of the longest prompt there may be."""
        from transformers import StopStringCriteria

        self.cache = KeyValueCache(model)
        self.steps = SlotSteps(model, config, slots=slots, longest=longest, cache=self.cache)
        self.max_new_tokens = config.max_new_tokens
        self.stop_strings: Any = None
        if config.stop_strings:
            self.stop_strings = StopStringCriteria(tokenizer, config.stop_strings)
        self._lock = threading.Lock()

    def write(self, prompts: list[list[int]]) -> Iterator[tuple[int, list[int]]]:
        """(index of a prompt, its summary's token ids), as they finish; with the end token, if any.

        Raises RuntimeError (out of memory) when not even the longest prompt's keys and values fit.
        """
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        with self._lock:
            waiting = deque(order)
            starts = self.steps.reserve([len(prompts[i]) + self.max_new_tokens for i in order])
            self.usable_slots = len(starts)
            free = list(range(self.usable_slots))
            running, seen = (
                dict[int, int](),
                dict[int, int](),
            )  # by slot: its prompt, tokens looked at
            self.steps.active.zero_()
            while waiting or running:
                while chosen := self._next(waiting, free, prompts, bool(running)):
                    self.steps.prefill([(slot, starts[slot], prompts[i]) for slot, i in chosen])
                    running |= dict(chosen)
                    seen |= {slot: 0 for slot, _ in chosen}
                left = self.max_new_tokens - min(seen[slot] for slot in running)
                self.steps.decode(min(DECODE_STEPS if self.steps.static else 1, max(left, 1)))
                for slot, ids in self._finished(running, seen, prompts):
                    free.append(slot)
                    yield running.pop(slot), ids

    def fits(self, tokens: int) -> bool:
        """Whether memory has room for a prompt of so many tokens and its summary."""
        if self.cache.device.type != "cuda":
            return True
        return self.cache.max_tokens() >= tokens + int(self.max_new_tokens)

    def _next(
        self, waiting: deque[int], free: list[int], prompts: list[list[int]], busy: bool
    ) -> list[tuple[int, int]]:
        """(slot, prompt) of the next prefill; none where it is better to go on decoding."""
        limit = self.steps.prefill_tokens
        tokens = count = 0
        for i in itertools.islice(waiting, min(len(free), PREFILL_ROWS)):
            if count and tokens + len(prompts[i]) > limit:
                break
            tokens, count = tokens + len(prompts[i]), count + 1
        # With more free slots the prefill would hold more.
        lacks_slots = count < min(PREFILL_ROWS, len(waiting)) and count == len(free)
        is_small = tokens < PREFILL_SHARE * limit and 2 * len(free) < self.usable_slots
        if lacks_slots and is_small and busy and self.steps.static:
            return []
        return [(free.pop(0), waiting.popleft()) for _ in range(count)]

    def _finished(
        self, running: dict[int, int], seen: dict[int, int], prompts: list[list[int]]
    ) -> list[tuple[int, list[int]]]:
        """(slot, token ids) of the summaries that have finished since the last look."""
        states = self.steps.written(running)
        written = {slot: ids for slot, (_, ids) in states.items()}
        stopped = self._stopped(running, seen, prompts, written) if self.stop_strings else {}
        for slot, length in stopped.items():
            written[slot] = written[slot][:length]
            self.steps.active[slot] = False
        seen |= {slot: len(ids) for slot, ids in written.items()}
        return [(s, ids) for s, ids in written.items() if s in stopped or not states[s][0]]

    def _stopped(
        self,
        running: dict[int, int],
        seen: dict[int, int],
        prompts: list[list[int]],
        written: dict[int, list[int]],
    ) -> dict[int, int]:
        """After how many tokens a slot's summary holds a stop string, as `generate` would find it."""
        tail = self.stop_strings.maximum_token_len
        places, windows = [], []
        for slot, i in running.items():
            ids = [self.steps.pad] * tail + prompts[i][-tail:] + written[slot]
            before = len(ids) - len(written[slot])
            for length in range(seen[slot] + 1, len(written[slot]) + 1):
                places.append((slot, length))
                windows.append(ids[before + length - tail : before + length])
        if not windows:
            return {}
        lengths: dict[int, int] = {}
        holds = self.stop_strings(torch.tensor(windows), None).tolist()
        for (slot, length), is_stop in zip(places, holds, strict=True):
            if is_stop:
                lengths.setdefault(slot, length)
        return lengths
