"""Continuous decoding: greedy summaries of many prompts at once; whoever ends makes room for the next.

Travels with packages whose settings say `decoding: continuous` or `auto`, beside summarizer.py, which
loads it.
It imports torch and transformers alone (Triton comes with torch's GPU builds).

Each prompt has a slot: a stretch of one flat cache of keys and values, as long as the prompt and its
longest summary, so attention reads what is there and no padding. Prompts are read packed one after the
other, then all slots write a token at a step; a slot whose summary has ended takes the next prompt
(Yu et al. 2022, Orca, OSDI). Longest first, so that whoever comes later fits.

On a GPU both kinds of step have one shape each, whatever is in them, and are recorded as CUDA graphs:
`generate` spends ten times as long launching kernels as the kernels take. One shape also means that a
summary does not depend on which others are written with it, in 16 bits too: the same kernels add the
same numbers in the same order. On a CPU steps hold what there is to do and nothing else.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import util
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

NAME = "precis_slots"
# Model types whose attention is shown to be computed here (tests/evaluate/test_evaluate_continuous.py).
TESTED = {"llama", "mistral", "qwen2", "qwen3", "phi", "phi3"}
ROPES = {"default", "linear", "yarn", "llama3"}  # angles that depend on a token's position alone
# Tokens of one packed step on a GPU, at least: by then matrix products are bound by arithmetic.
CHUNK = 4096
ROWS = 64  # prompts of one packed step at most: 64 of 4,096 tokens are as short as prompts get
FULL = 0.75  # of a packed step, which costs the same empty: until then free slots wait for more
STEPS = 8  # tokens that a GPU writes between two looks at which slots have ended
RESERVE_BYTES = 2 << 30  # of a GPU's free memory, for what a packed step computes
CAUSAL = 1  # the memory-efficient kernel's mask


def reachable_bytes(device: Any = None) -> int:
    """Bytes of a GPU's memory that this process holds or could still take, within a share set for it."""
    free, total = torch.cuda.mem_get_info(device)
    share = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    held: int = torch.cuda.memory_reserved(device)
    return min(int(free) + held, share)


def refusal(model: Any, config: Any) -> str | None:
    """Why this model's summaries cannot be written here, or None. `config`: what `generate` would use."""
    shape, where = model.config.get_text_config(), model.device.type
    ropes = {getattr(part, "rope_type", "default") for part in model.modules()}
    layers = getattr(shape, "layer_types", None)
    window = getattr(shape, "sliding_window", None) is not None
    slides = window if layers is None else set(layers) != {"full_attention"}
    changed = [type(one).__name__ for one in model._get_logits_processor(config, 1)]
    reasons = [
        (shape.model_type not in TESTED, f"it was not tried with {shape.model_type} models"),
        (slides, "the model's attention slides over a window"),
        (getattr(shape, "attn_logit_softcapping", None), "the model caps its attention scores"),
        (ropes - ROPES, f"angles depend on the text's length ({', '.join(ropes - ROPES)} RoPE)"),
        ("offloaded" in str(config.cache_implementation), "keys and values are offloaded"),
        (changed, f"the base's generation_config changes scores ({', '.join(changed)})"),
        (getattr(model, "hf_device_map", None), "the model is spread over several GPUs"),
        (where not in {"cpu", "cuda"}, f"it was not tried on {where}"),
        (where == "cuda" and not util.find_spec("triton"), "Triton is not installed"),
        (where == "cuda" and _is_old(model.device), "it was not tried on GPUs without bf16"),
    ]
    return next((reason for holds, reason in reasons if holds), None)


def _is_old(device: Any) -> bool:
    major, _ = torch.cuda.get_device_capability(device)
    return int(major) < 8


class Decoder:
    """Writes greedily what `generate` would write, for any number of prompts, through `slots` slots."""

    def __init__(
        self, model: Any, tokenizer: Any, config: Any, *, slots: int, longest: int
    ) -> None:
        """`config`: a complete GenerationConfig; `longest`: tokens of the longest prompt there may be.

        `static`, which may be set before the first call, has steps take one shape each.
        """
        from transformers import AttentionInterface, StopStringCriteria

        AttentionInterface.register(NAME, _attention)
        self.model, self.slots, self.most = model, slots, config.max_new_tokens
        self.device, self.static = model.device, model.device.type == "cuda"
        self.pad = config.pad_token_id or 0
        self.chunk = max(CHUNK, -(-longest // 256) * 256)
        ends = config.eos_token_id if config.eos_token_id is not None else []
        self.ends = torch.tensor([ends] if isinstance(ends, int) else ends, device=self.device)
        self.stopping: Any = None
        if config.stop_strings:
            self.stopping = StopStringCriteria(tokenizer, config.stop_strings)
        self._state()
        self.keys: list[Tensor] = []  # a layer: [heads, tokens + 1, width]; the last is never read
        self.values: list[Tensor] = []
        self.trash = -1
        self.graphs: dict[str, Any] = {}
        self._lock = threading.Lock()

    def _state(self) -> None:
        """What is known of each slot, on its device; the last is nobody's, for what fills a step up."""
        whole = functools.partial(torch.zeros, device=self.device, dtype=torch.long)
        count = self.slots + 1
        self.token, self.position, self.count = whole(count), whole(count), whole(count)
        self.start = whole(count)
        self.active = torch.zeros(count, device=self.device, dtype=torch.bool)
        self.out = whole(count, self.most + 1)  # the last column: of slots that have ended

    def write(self, prompts: list[list[int]]) -> Iterator[tuple[int, list[int]]]:
        """(index of a prompt, its summary's token ids), as they end; with the end token, if it came.

        Raises RuntimeError (out of memory) when not even the longest prompt's keys and values fit.
        """
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        with self._lock:
            waiting = deque(order)
            starts = self._room([len(prompts[i]) + self.most for i in order])
            self.usable = len(starts)
            free, running, seen = list(range(self.usable)), dict[int, int](), dict[int, int]()
            self.active.zero_()
            while waiting or running:
                while chosen := self._next(waiting, free, prompts, bool(running)):
                    self._read([(slot, starts[slot], prompts[i]) for slot, i in chosen])
                    running |= dict(chosen)
                    seen |= {slot: 0 for slot, _ in chosen}
                left = self.most - min(seen[slot] for slot in running)
                self._decode(min(STEPS if self.static else 1, max(left, 1)))
                for slot, ids in self._ended(running, seen, prompts):
                    free.append(slot)
                    yield running.pop(slot), ids

    def fits(self, tokens: int) -> bool:
        """Whether a prompt of so many tokens and its summary have room."""
        return self.device.type != "cuda" or self._most_tokens() >= tokens + int(self.most)

    def _next(
        self, waiting: deque[int], free: list[int], prompts: list[list[int]], busy: bool
    ) -> list[tuple[int, int]]:
        """(slot, prompt) of those that are read next, in one packed step; none: better to write on."""
        tokens = count = 0
        for i in itertools.islice(waiting, min(len(free), ROWS)):
            if count and tokens + len(prompts[i]) > self.chunk:
                break
            tokens, count = tokens + len(prompts[i]), count + 1
        if count < min(ROWS, len(waiting)) and count == len(
            free
        ):  # more would fit, had they a slot
            few = tokens < FULL * self.chunk and 2 * len(free) < self.usable
            if self.static and busy and few:
                return []
        return [(free.pop(0), waiting.popleft()) for _ in range(count)]

    # --- Memory -----------------------------------------------------------------------------------

    def _room(self, widths: list[int]) -> list[int]:
        """Where in the cache each slot begins that these prompts need and memory has room for."""
        layers, heads, width = self._sizes()
        ends = list(itertools.accumulate(widths[: self.slots]))
        most = self._most_tokens() if self.device.type == "cuda" else ends[-1]
        fitting = [end for end in ends if end <= most]
        if not fitting:
            raise RuntimeError(f"out of memory: keys and values of {ends[0]} tokens do not fit")
        if fitting[-1] > self.trash:
            self.keys, self.values, self.graphs = [], [], {}  # given back before new ones are taken
            wanted = min(-(-fitting[-1] // CHUNK) * CHUNK, most)
            make = functools.partial(
                torch.zeros, heads, wanted + 1, width, dtype=self.model.dtype, device=self.device
            )
            self.keys = [make() for _ in range(layers)]
            self.values = [make() for _ in range(layers)]
            self.trash = wanted
            if self.static:
                self._hold_still()
            if self.device.type == "cuda":
                self._record()
        return [0, *fitting[:-1]]

    def _sizes(self) -> list[int]:
        """Layers, heads of keys, and numbers a head."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        return [config.num_hidden_layers, heads, width]

    def _most_tokens(self) -> int:
        """How many tokens' keys and values the GPU could hold, those that it holds already included."""
        layers, heads, width = self._sizes()
        bytes_per_token: int = 2 * layers * heads * width * self.model.dtype.itemsize
        held: int = torch.cuda.memory_allocated(self.device)
        free = reachable_bytes(self.device) - held
        return max((free - RESERVE_BYTES) // bytes_per_token, 0) + max(self.trash, 0)

    # --- Steps ------------------------------------------------------------------------------------

    def _read(self, chosen: list[tuple[int, int, list[int]]]) -> None:
        """Read prompts into their slots, (slot, its start, prompt), and write the first token of each."""
        used = sum(len(prompt) for *_, prompt in chosen)
        width, rows = (self.chunk, ROWS) if self.static else (used, len(chosen))
        rest, bare = width - used, rows - len(chosen)
        lengths = [len(prompt) for *_, prompt in chosen]
        bounds = [0, *itertools.accumulate(lengths)]
        places = [at for _, start, p in chosen for at in range(start, start + len(p))]
        made = {
            "ids": [i for *_, prompt in chosen for i in prompt] + [self.pad] * rest,
            "positions": [n for length in [*lengths, rest] for n in range(length)],
            "write": places + [self.trash] * rest,
            "bounds": bounds + [width] * (bare + self.static),  # what fills it up is a row too
            "last": [end - 1 for end in bounds[1:]] + [0] * bare,
            "slots": [slot for slot, *_ in chosen] + [self.slots] * bare,
            "starts": [start for _, start, _ in chosen] + [0] * bare,
            "lengths": lengths + [0] * bare,
        }
        self._take(made)
        self._run("read", self._read_step)

    def _take(self, made: dict[str, list[int]]) -> None:
        """Put a packed step's inputs where the step looks for them: always the same place on a GPU."""
        kinds = {"bounds": torch.int32}
        found = {
            name: torch.tensor(v, dtype=kinds.get(name, torch.long)) for name, v in made.items()
        }
        if not self.static:
            self.inputs = found
            return
        for name, tensor in found.items():
            self.inputs[name].copy_(tensor)

    def _read_step(self) -> None:
        given = self.inputs
        self.reading, self.write_at = True, given["write"]
        first = self._most_likely(given["ids"], given["positions"], logits_to_keep=given["last"])
        slots = given["slots"]
        self.token[slots], self.position[slots] = first, given["lengths"]
        self.start[slots], self.count[slots] = given["starts"], torch.ones_like(first)
        self.out[slots, torch.zeros_like(slots)] = first
        self.active[slots] = ~self._is_end(first) & (self.most > 1)

    def _decode(self, steps: int) -> None:
        if self.static:
            for _ in range(steps):
                self._run("decode", self._decode_step)
            return
        self.rows: Any = self.active[:-1].nonzero().squeeze(1)
        if len(self.rows):
            self._run("decode", self._decode_step)

    def _decode_step(self) -> None:
        """A token more for each slot of `rows`; those that have ended stay as they are."""
        rows = self.rows
        active, position, count = self.active[rows], self.position[rows], self.count[rows]
        start = self.start[rows]
        self.reading = False
        self.write_at = (start + position).masked_fill(~active, self.trash)
        self.read_from = start.masked_fill(~active, self.trash)
        self.read_length = (position + 1).masked_fill(~active, 1)
        found = self._most_likely(self.token[rows], position)
        ended = self._is_end(found) | (count + 1 >= self.most)
        columns = count.masked_fill(~active, self.most)[:, None]
        self.out[rows] = self.out[rows].scatter(1, columns, found[:, None])
        self.token[rows] = torch.where(active, found, self.token[rows])
        self.position[rows], self.count[rows] = position + active, count + active
        self.active[rows] = active & ~ended

    def _most_likely(self, ids: Tensor, positions: Tensor, **more: Any) -> Tensor:
        logits = self.model(
            input_ids=ids[None], position_ids=positions[None], use_cache=False, slots=self, **more
        ).logits
        return logits[0].argmax(-1)

    def _is_end(self, tokens: Tensor) -> Tensor:
        return (tokens[:, None] == self.ends).any(1)

    def _ended(
        self, running: dict[int, int], seen: dict[int, int], prompts: list[list[int]]
    ) -> list[tuple[int, list[int]]]:
        """(slot, its summary) of those that have ended; `seen`: how many tokens were looked at before."""
        state = torch.cat([self.active[:, None], self.count[:, None], self.out], 1).tolist()
        written = {slot: state[slot][2 : 2 + state[slot][1]] for slot in running}
        stopped = self._stopped(running, seen, prompts, written) if self.stopping else {}
        for slot, length in stopped.items():
            written[slot] = written[slot][:length]
            self.active[slot] = False
        seen |= {slot: len(ids) for slot, ids in written.items()}
        return [(s, ids) for s, ids in written.items() if s in stopped or not state[s][0]]

    def _stopped(
        self,
        running: dict[int, int],
        seen: dict[int, int],
        prompts: list[list[int]],
        written: dict[int, list[int]],
    ) -> dict[int, int]:
        """After how many tokens a slot's summary holds a stop string, as `generate` would have seen it."""
        tail = self.stopping.maximum_token_len
        places, windows = [], []
        for slot, i in running.items():
            text = [self.pad] * tail + prompts[i][-tail:] + written[slot]
            before = len(text) - len(written[slot])
            for length in range(seen[slot] + 1, len(written[slot]) + 1):
                places.append((slot, length))
                windows.append(text[before + length - tail : before + length])
        if not windows:
            return {}
        hit = self.stopping(torch.tensor(windows), None).tolist()
        found: dict[int, int] = {}
        for (slot, length), here in zip(places, hit, strict=True):
            if here:
                found.setdefault(slot, length)
        return found

    # --- How a step is run ------------------------------------------------------------------------

    def _run(self, name: str, step: Callable[[], None]) -> None:
        if name in self.graphs:
            self.graphs[name].replay()
            return
        with torch.inference_mode(), self._attending():
            step()

    def _hold_still(self) -> None:
        """Give both steps inputs of one shape and in one place, which write where nobody reads."""
        self.active.zero_()
        self.rows = slice(0, self.slots)
        make = functools.partial(torch.zeros, device=self.device, dtype=torch.long)
        long = {name: make(self.chunk) for name in ("ids", "positions", "write")}
        short = {name: make(ROWS) for name in ("last", "slots", "starts", "lengths")}
        self.inputs = long | short | {"bounds": make(ROWS + 2).to(torch.int32)}
        self.inputs["write"].fill_(self.trash)
        self.inputs["slots"].fill_(self.slots)
        self.inputs["bounds"][1:] = self.chunk

    def _record(self) -> None:
        """Record both steps as CUDA graphs."""
        for name, step in (("read", self._read_step), ("decode", self._decode_step)):
            self._run(name, step)  # compiles what is compiled at its first use
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize(self.device)
            with torch.inference_mode(), self._attending(), torch.cuda.graph(graph):
                step()
            self.graphs[name] = graph

    @contextmanager
    def _attending(self) -> Iterator[None]:
        """The model with attention by slots; on a GPU each norm is one kernel instead of eight."""
        config, norms = self.model.config, []
        if self.device.type == "cuda":
            norms = [m for m in self.model.modules() if type(m).__name__.endswith("RMSNorm")]
            norms = [m for m in norms if hasattr(m, "variance_epsilon")]
        before, config._attn_implementation = config._attn_implementation, NAME
        for norm in norms:
            norm.__dict__["forward"] = functools.partial(_norm, norm)
        try:
            yield
        finally:
            for norm in norms:
                norm.__dict__.pop("forward", None)
            config._attn_implementation = before

    # --- Attention --------------------------------------------------------------------------------

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Keep this step's keys and values, and attend: [tokens, heads, width], all without padding."""
        keys, values = self.keys[layer], self.values[layer]
        # Phi's queries and keys come in float32.
        keys.index_copy_(1, self.write_at, key[0].to(keys.dtype))
        values.index_copy_(1, self.write_at, value[0])
        flat = query[0].transpose(0, 1).to(value.dtype)
        if self.reading:
            new_key, new_value = (x[0].transpose(0, 1).to(value.dtype) for x in (key, value))
            bounds = self.inputs["bounds"]
            return within_rows(flat, new_key, new_value, bounds, scale, self.chunk)
        look = by_kernel if query.is_cuda else one_by_one
        return look(flat, keys, values, self.read_from, self.read_length, scale)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    slots: Decoder,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """In transformers' form: [1, heads, tokens, width] in, [1, tokens, heads, width] out."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return slots.attend(module.layer_idx, query, key, value, scale)[None], None


def _norm(module: Any, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, module.weight.shape, module.weight, module.variance_epsilon)


def _same_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return query, key, value
    return query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def within_rows(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float, longest: int
) -> Tensor:
    """Causal attention within each packed row; [tokens, heads, width], `bounds` int32.

    By FlashAttention-2 (Dao 2023, arXiv:2307.08691) or the memory-efficient kernel (Rabe and Staats
    2021, arXiv:2112.05682) on a GPU, row by row on a CPU.
    """
    if not query.is_cuda:
        query, key, value = _same_heads(query, key, value)
        rows = []
        for first, end in itertools.pairwise(bounds.tolist()):
            q, k, v = (x[first:end].transpose(0, 1)[None] for x in (query, key, value))
            made = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
            rows.append(made[0].transpose(0, 1))
        return torch.cat(rows)
    if query.dtype != torch.float32 and torch.cuda.get_device_capability(query.device) >= (8, 0):
        found: Tensor = torch.ops.aten._flash_attention_forward(
            query, key, value, bounds, bounds, longest, longest, 0.0, True, False, scale=scale
        )[0]
        return found
    q, k, v = (x.contiguous()[None] for x in _same_heads(query, key, value))
    batch = torch.ops.aten._efficient_attention_forward(
        q, k, v, None, bounds, bounds, longest, longest, 0.0, CAUSAL, False, scale=scale
    )[0]
    out: Tensor = batch[0]
    return out


def one_by_one(
    query: Tensor, keys: Tensor, values: Tensor, starts: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """Each slot's one query over the keys that it has: the reference, and a CPU's way.

    `query` [slots, heads, width]; `keys`, `values` [their heads, tokens, width]; a slot's are
    `lengths` tokens from `starts` on.
    """
    grouped = query.shape[1] != keys.shape[0]
    rows = []
    for one, start, length in zip(query, starts.tolist(), lengths.tolist(), strict=True):
        k, v = (x[None, :, start : start + length] for x in (keys, values))
        made = functional.scaled_dot_product_attention(
            one[None, :, None], k, v, scale=scale, enable_gqa=grouped
        )
        rows.append(made[0, :, 0])
    return torch.stack(rows)


BLOCK_TOKENS, WARPS = 64, 2


def by_kernel(
    query: Tensor, keys: Tensor, values: Tensor, starts: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """`one_by_one` as one kernel: a program a slot and head, which reads each key and value once.

    The softmax is taken as the keys pass by (Milakov and Gimelshein 2018, arXiv:1805.02867). No matrix
    units: with one query there is one multiplication a number read, and reading is what takes time.
    """
    slots, heads, width = query.shape
    query, out = query.contiguous(), torch.empty_like(query, memory_format=torch.contiguous_format)
    _kernel()[(slots, heads)](
        query, keys, values, out, starts, lengths, scale * 1.4426950408889634, keys.stride(0),
        heads, heads // keys.shape[0], width, 1 << (width - 1).bit_length(), BLOCK_TOKENS,
        num_warps=WARPS,
    )  # fmt: skip
    return out


@functools.cache
def _kernel() -> Any:
    """Triton is imported where it is used: a machine without a GPU need not have it."""
    import triton
    import triton.language as tl

    def look_back(  # type: ignore[no-untyped-def]
        query, keys, values, out, starts, lengths, scale, head_stride,
        heads: tl.constexpr, group: tl.constexpr, width: tl.constexpr, wide: tl.constexpr,
        block: tl.constexpr,
    ):  # fmt: skip
        slot, head = tl.program_id(0), tl.program_id(1)
        across = tl.arange(0, wide)
        inside = across < width
        mine = (slot * heads + head) * width + across
        asked = tl.load(query + mine, mask=inside, other=0.0).to(tl.float32) * scale
        length = tl.load(lengths + slot).to(tl.int32)
        first = (head // group).to(tl.int64) * head_stride + tl.load(starts + slot) * width
        down = tl.arange(0, block)
        largest = tl.full([1], float("-inf"), tl.float32)
        total = tl.zeros([1], tl.float32)
        found = tl.zeros([wide], tl.float32)
        for at in range(0, length, block):
            there = at + down < length
            places = first + (at + down)[:, None] * width + across[None, :]
            seen = there[:, None] & inside[None, :]
            key = tl.load(keys + places, mask=seen, other=0.0).to(tl.float32)
            value = tl.load(values + places, mask=seen, other=0.0).to(tl.float32)
            score = tl.where(there, tl.sum(key * asked[None, :], 1), float("-inf"))
            now = tl.maximum(largest, tl.max(score, 0))
            share = tl.exp2(score - now)
            shrink = tl.exp2(largest - now)
            total = total * shrink + tl.sum(share, 0)
            found = found * shrink + tl.sum(share[:, None] * value, 0)
            largest = now
        made = found / total
        tl.store(out + mine, made.to(out.dtype.element_ty), mask=inside)

    look_back.__globals__["tl"] = tl
    return triton.jit(look_back)
