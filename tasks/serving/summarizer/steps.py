"""The two steps of continuous decoding over slots: prefill of packed prompts, and one token a slot.

On a GPU both have one shape each, whatever is in them, and are recorded as CUDA graphs: `generate`
spends ten times as long launching kernels as the kernels take. One shape also means that a summary does
not depend on which others are written with it, in 16 bits too: the same kernels add the same numbers in
the same order. On a CPU steps have the size of what is in them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .cache import KeyValueCache
from .kernels import decode_attention, decode_attention_reference, packed_attention

# In transformers' table of attention functions, which all versions in a process share: a name a copy.
ATTENTION_NAME = "precis_slots_" + __name__.replace(".", "_")
# Tokens of one prefill on a GPU, at least: by then matrix products are bound by arithmetic.
PREFILL_TOKENS = 4096
PREFILL_ROWS = 64  # prompts of one prefill at most: 64 of 4,096 tokens are as short as prompts get


class SlotSteps:
    """Runs both steps, and holds the state of every slot on the model's device.

    `static`: steps have one shape each, as on a GPU; to be changed before the first step only.
    """

    def __init__(
        self, model: Any, config: Any, *, slots: int, longest: int, cache: KeyValueCache
    ) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION_NAME, _attention)
        self.model, self.cache, self.slots = model, cache, slots
        self.max_new_tokens = config.max_new_tokens
        self.device, self.static = model.device, model.device.type == "cuda"
        self.pad = config.pad_token_id or 0
        self.prefill_tokens = max(PREFILL_TOKENS, -(-longest // 256) * 256)
        ends = config.eos_token_id if config.eos_token_id is not None else []
        self.end_ids = torch.tensor([ends] if isinstance(ends, int) else ends, device=self.device)
        self.graphs: dict[str, Any] = {}
        # The state of each slot; the last is a scratch slot, for what fills a step up to its shape.
        zeros = functools.partial(torch.zeros, device=self.device, dtype=torch.long)
        rows = slots + 1
        self.token, self.position, self.start = zeros(rows), zeros(rows), zeros(rows)
        self.token_count = zeros(rows)
        self.active = torch.zeros(rows, device=self.device, dtype=torch.bool)
        # The last column is written by slots that have finished.
        self.output_ids = zeros(rows, self.max_new_tokens + 1)

    def reserve(self, lengths: list[int]) -> list[int]:
        """Where slots of these lengths begin in the cache, as many as there are slots and room."""
        starts, grew = self.cache.reserve(lengths[: self.slots], self.graphs.clear)
        if grew and self.static:
            self._fix_inputs()
        if grew and self.device.type == "cuda":
            self._record_graphs()
        return starts

    def written(self, slots: Iterable[int]) -> dict[int, tuple[bool, list[int]]]:
        """For each of these slots whether it is still active, and the tokens written so far."""
        columns = [self.active[:, None], self.token_count[:, None], self.output_ids]
        rows = torch.cat(columns, 1).tolist()
        return {slot: (bool(rows[slot][0]), rows[slot][2 : 2 + rows[slot][1]]) for slot in slots}

    # --- Prefill ----------------------------------------------------------------------------------

    def prefill(self, chosen: list[tuple[int, int, list[int]]]) -> None:
        """Read prompts into their slots, (slot, its start, prompt), and write the first token of each."""
        prompts = [prompt for *_, prompt in chosen]
        lengths = [len(prompt) for prompt in prompts]
        used, scratch = sum(lengths), self.cache.scratch_index
        width, rows = (self.prefill_tokens, PREFILL_ROWS) if self.static else (used, len(chosen))
        fill, empty_rows = width - used, rows - len(chosen)
        bounds = [0, *itertools.accumulate(lengths)]
        places = [place for _, start, p in chosen for place in range(start, start + len(p))]
        inputs = {
            "ids": [i for prompt in prompts for i in prompt] + [self.pad] * fill,
            "positions": [n for length in [*lengths, fill] for n in range(length)],
            "write": places + [scratch] * fill,
            "bounds": bounds
            + [width] * (empty_rows + self.static),  # what fills it up is a row too
            "last": [end - 1 for end in bounds[1:]] + [0] * empty_rows,
            "slots": [slot for slot, *_ in chosen] + [self.slots] * empty_rows,
            "starts": [start for _, start, _ in chosen] + [0] * empty_rows,
            "lengths": lengths + [0] * empty_rows,
        }
        self._set_inputs(inputs)
        self._run("prefill", self._prefill_step)

    def _set_inputs(self, values: dict[str, list[int]]) -> None:
        """Put a prefill's inputs where the step reads them: always the same place on a GPU."""
        dtypes = {"bounds": torch.int32}
        tensors = {
            name: torch.tensor(v, dtype=dtypes.get(name, torch.long)) for name, v in values.items()
        }
        if not self.static:
            self.inputs = tensors
            return
        for name, tensor in tensors.items():
            self.inputs[name].copy_(tensor)

    def _prefill_step(self) -> None:
        inputs = self.inputs
        self.is_prefill, self.write_at = True, inputs["write"]
        first = self._most_likely(inputs["ids"], inputs["positions"], logits_to_keep=inputs["last"])
        slots = inputs["slots"]
        self.token[slots], self.position[slots] = first, inputs["lengths"]
        self.start[slots], self.token_count[slots] = inputs["starts"], torch.ones_like(first)
        self.output_ids[slots, torch.zeros_like(slots)] = first
        self.active[slots] = ~self._is_end(first) & (self.max_new_tokens > 1)

    # --- Decode -----------------------------------------------------------------------------------

    def decode(self, steps: int) -> None:
        """Write `steps` tokens in each active slot (on a CPU one, whatever `steps`)."""
        if self.static:
            for _ in range(steps):
                self._run("decode", self._decode_step)
            return
        self.rows: Any = self.active[:-1].nonzero().squeeze(1)
        if len(self.rows):
            self._run("decode", self._decode_step)

    def _decode_step(self) -> None:
        """A token more for each slot of `rows`; those that have finished stay as they are."""
        rows, scratch = self.rows, self.cache.scratch_index
        active, position, count = self.active[rows], self.position[rows], self.token_count[rows]
        start = self.start[rows]
        self.is_prefill = False
        self.write_at = (start + position).masked_fill(~active, scratch)
        self.read_from = start.masked_fill(~active, scratch)
        self.read_length = (position + 1).masked_fill(~active, 1)
        tokens = self._most_likely(self.token[rows], position)
        ended = self._is_end(tokens) | (count + 1 >= self.max_new_tokens)
        columns = count.masked_fill(~active, self.max_new_tokens)[:, None]
        self.output_ids[rows] = self.output_ids[rows].scatter(1, columns, tokens[:, None])
        self.token[rows] = torch.where(active, tokens, self.token[rows])
        self.position[rows], self.token_count[rows] = position + active, count + active
        self.active[rows] = active & ~ended

    def _most_likely(self, ids: Tensor, positions: Tensor, **more: Any) -> Tensor:
        logits = self.model(
            input_ids=ids[None], position_ids=positions[None], use_cache=False, slots=self, **more
        ).logits
        return logits[0].argmax(-1)

    def _is_end(self, tokens: Tensor) -> Tensor:
        return (tokens[:, None] == self.end_ids).any(1)

    # --- Attention --------------------------------------------------------------------------------

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store this step's keys and values, and attend: [tokens, heads, width], without padding.

        `query`, `key` and `value` are [1, heads, tokens, width].
        """
        keys, values = self.cache.write(layer, self.write_at, key[0], value[0])
        flat = query[0].transpose(0, 1).to(value.dtype)  # Phi's queries come in float32
        if self.is_prefill:
            new_key, new_value = (x[0].transpose(0, 1).to(value.dtype) for x in (key, value))
            bounds = self.inputs["bounds"]
            return packed_attention(flat, new_key, new_value, bounds, scale, self.prefill_tokens)
        attention = decode_attention if query.is_cuda else decode_attention_reference
        return attention(flat, keys, values, self.read_from, self.read_length, scale)

    @contextmanager
    def _slot_attention(self) -> Iterator[None]:
        """The model with attention by slots; on a GPU each norm is one kernel instead of eight."""
        config, norms = self.model.config, []
        if self.device.type == "cuda":
            norms = [m for m in self.model.modules() if type(m).__name__.endswith("RMSNorm")]
            norms = [m for m in norms if hasattr(m, "variance_epsilon")]
        before, config._attn_implementation = config._attn_implementation, ATTENTION_NAME
        for norm in norms:
            norm.__dict__["forward"] = functools.partial(_rms_norm, norm)
        try:
            yield
        finally:
            for norm in norms:
                norm.__dict__.pop("forward", None)
            config._attn_implementation = before

    # --- CUDA graphs ------------------------------------------------------------------------------

    def _run(self, name: str, step: Callable[[], None]) -> None:
        if name in self.graphs:
            self.graphs[name].replay()
            return
        with torch.inference_mode(), self._slot_attention():
            step()

    def _fix_inputs(self) -> None:
        """Give both steps inputs of one shape and in one place, which write to scratch only."""
        self.active.zero_()
        self.rows = slice(0, self.slots)
        zeros = functools.partial(torch.zeros, device=self.device, dtype=torch.long)
        long = {name: zeros(self.prefill_tokens) for name in ("ids", "positions", "write")}
        short = {name: zeros(PREFILL_ROWS) for name in ("last", "slots", "starts", "lengths")}
        self.inputs = long | short | {"bounds": zeros(PREFILL_ROWS + 2).to(torch.int32)}
        self.inputs["write"].fill_(self.cache.scratch_index)
        self.inputs["slots"].fill_(self.slots)
        self.inputs["bounds"][1:] = self.prefill_tokens

    def _record_graphs(self) -> None:
        """Record both steps as CUDA graphs."""
        for name, step in (("prefill", self._prefill_step), ("decode", self._decode_step)):
            self._run(name, step)  # compiles what is compiled at its first use
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize(self.device)
            with torch.inference_mode(), self._slot_attention(), torch.cuda.graph(graph):
                step()
            self.graphs[name] = graph


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    slots: SlotSteps,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """In transformers' form: [1, heads, tokens, width] in, [1, tokens, heads, width] out."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return slots.attend(module.layer_idx, query, key, value, scale)[None], None


def _rms_norm(module: Any, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, module.weight.shape, module.weight, module.variance_epsilon)
