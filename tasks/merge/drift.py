"""Drift: how far the merged model's predictions are from the adapter's, on tokens of references."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts.errors import MergeError
from tasks.contracts.recipe import Merge, Recipe
from tasks.contracts.records import Drift, Row, read_rows
from tasks.models import loading
from tasks.models.encoding import IGNORED, Examples, encode_for
from tasks.models.prepared_base import PreparedBase

# How far rounding to 16 bits may move the log-odds of two tokens, in nats. Llama-2-7B's shape in bf16 on an
# H200: a sound merge ranked 205 of 7,980 tokens otherwise, and moved none of them by over 0.2; onto the
# wrong rounding it were 1,374, of which 1,176 by over 0.2 (tests/bench/results/2026-11-28-drift.json).
ROUNDED_NATS = 0.2
ROUNDED_LOGITS = (
    3.0  # or this many units of the largest logit's last place: there, 0.0625 nats each
)
POSITIONS_AT_ONCE = 256  # a token's distribution has up to 256,000 numbers


def measure(base: PreparedBase, adapter: Path, merged: Path, rows: Path, recipe: Recipe) -> Drift:
    """Mean KL(adapter || merged), nats a token, and how often both rank the same token first.

    Where they do not, the token still counts as agreed on if rounding explains it: if merging moved the
    log-odds of the two tokens no further than rounding to 16 bits may. `Drift.near_ties` is their share.
    The live adapter runs on the base as it was quantized in training, the merged model in the
    precision it will be served in; one after the other, so that memory holds only one. Raises
    MergeError when no GPUs' memory holds a model.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        base.path, local_files_only=True, trust_remote_code=False
    )
    packs = _packs(_sample(read_rows(rows), tokenizer, base, recipe.merge), recipe)
    of_adapter = _predictions(_live_model(base.path, adapter, recipe), packs)
    _free_memory()
    drift = _compared(of_adapter, _merged_model(merged), packs)
    _free_memory()  # for what this process loads next
    return drift


def refuse(drift: Drift, settings: Merge) -> None:
    """Raise MergeError when the drift is past the recipe's tolerance (or is not a number)."""
    if drift.kl <= settings.max_kl and drift.top1_agreement >= settings.min_top1_agreement:
        return
    raise MergeError(
        f"the merged model drifted from its adapter, over {drift.tokens} tokens: "
        f"KL {drift.kl:.1e} nats a token (merge.max_kl {settings.max_kl:g}), "
        f"top-1 agreement {drift.top1_agreement:.4f} (merge.min_top1_agreement "
        f"{settings.min_top1_agreement:g}); merge.onto is {settings.onto}, and quantized_base is "
        f"closest to what was trained{_how_to_accept(drift, settings)}"
    )


def _how_to_accept(drift: Drift, settings: Merge) -> str:
    if not math.isfinite(drift.kl):
        return ""
    sets = []
    if drift.kl > settings.max_kl:
        sets.append(f"--set merge.max_kl={float(f'{drift.kl * 1.05:.1e}'):g}")
    if drift.top1_agreement < settings.min_top1_agreement:
        floor = math.floor(drift.top1_agreement * 1000) / 1000
        sets.append(f"--set merge.min_top1_agreement={floor:g}")
    return f". If you accept this drift, run again with {' '.join(sets)}"


@dataclass(frozen=True)
class _Pack:
    """Rows in one sequence; positions begin again with each, by which transformers keeps them apart."""

    ids: list[int]
    position_ids: list[int]
    predicted_at: list[int]  # the positions whose next token belongs to a reference


def _sample(rows: list[Row], tokenizer: Any, base: PreparedBase, settings: Merge) -> Examples:
    """Rows spread evenly over the file, each with its first reference, until they hold enough tokens."""
    count = min(settings.drift_rows, len(rows))
    while True:
        chosen = rows[:: max(1, len(rows) // count)][:count]
        first = [Row(row.id, row.source, row.document, row.references[:1]) for row in chosen]
        examples = encode_for(first, tokenizer, base)
        tokens = sum(label != IGNORED for labels in examples.labels for label in labels)
        if tokens >= settings.drift_tokens or count == len(rows):
            return examples
        count = min(len(rows), 1 + math.ceil(1.1 * count * settings.drift_tokens / max(tokens, 1)))


def _packs(examples: Examples, recipe: Recipe) -> list[_Pack]:
    """On a GPU sequences as long as those of training, which fit its memory; on a CPU one for each row.

    A CPU would compute attention between rows only to mask it.
    """
    most = recipe.training.max_length if loading.device() != "cpu" else 0
    packs: list[_Pack] = []
    for ids, labels in zip(examples.input_ids, examples.labels, strict=True):
        if not packs or len(packs[-1].ids) + len(ids) > most:
            packs.append(_Pack([], [], []))
        pack = packs[-1]
        start = len(pack.ids) - 1
        pack.predicted_at.extend(start + i for i, label in enumerate(labels) if label != IGNORED)
        pack.ids.extend(ids)
        pack.position_ids.extend(range(len(ids)))
    return packs


def _live_model(base: Path, adapter: Path, recipe: Recipe) -> Any:
    from bitsandbytes.nn import Linear4bit
    from peft import PeftModel

    dtype = loading.compute_dtype()
    model = PeftModel.from_pretrained(_load(base, recipe.base.quantization, dtype), adapter).eval()
    # bitsandbytes' inference kernel for CPUs computes in bf16 and asserts on sizes that are no
    # multiple of 32; in training mode a 4-bit layer computes as it did in training, on any device.
    # Not PEFT's wrapper, which has the same name: its dropout would be drawn again.
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.train()
    return model


def _merged_model(folder: Path) -> Any:
    return _load(folder, "none", loading.compute_dtype()).eval()


def _load(model: Path, quantization: str, dtype: Any) -> Any:
    try:
        return loading.load_base(model, quantization, dtype)
    except ValueError as error:  # a retry would not find more memory
        raise MergeError(f"the drift check cannot load {model}: {error}") from error


def _free_memory() -> None:
    """Free a model that is no longer used: its modules refer to each other, so reference counts do not."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing without a GPU


def _predictions(model: Any, packs: list[_Pack]) -> list[tuple[Any, Any]]:
    """What a model predicts, in parts, on the CPU.

    Of each part: logits less the largest [tokens, vocabulary], and how far rounding may move the log-odds of
    two tokens [tokens]. Logits of 16 bits are kept in float16: less the largest, those that matter are near
    zero, where it is the finer one.
    """
    import torch

    dtype = loading.compute_dtype()
    kept = torch.float32 if dtype == torch.float32 else torch.float16
    found = []
    for logits in _logits(model, packs):
        spacing = torch.finfo(dtype).eps * logits.abs().amax(-1)
        relative = (logits - logits.amax(-1, keepdim=True)).clamp(min=torch.finfo(kept).min)
        allowed = (ROUNDED_LOGITS * spacing).clamp(min=ROUNDED_NATS)
        found.append((relative.to(kept).cpu(), allowed.cpu()))
    return found


def _compared(of_adapter: list[tuple[Any, Any]], model: Any, packs: list[_Pack]) -> Drift:
    """The drift of `model` from the one whose `_predictions` are given."""
    parts = [
        (*_differences(relative, allowed, logits), len(relative))
        for (relative, allowed), logits in zip(of_adapter, _logits(model, packs), strict=True)
    ]
    kl, flips, near_ties, tokens = map(sum, zip(*parts, strict=True))
    return Drift(kl / tokens, 1 - flips / tokens, int(tokens), near_ties / tokens)


def _differences(relative: Any, allowed: Any, logits: Any) -> tuple[float, int, int]:
    """The sum of KL, and how many tokens are ranked otherwise: beyond what is `allowed`, and within it.

    `relative` and `logits` are [tokens, vocabulary], of adapter and merged model; `allowed` is [tokens].
    """
    p, q = relative.to(logits.device).float().log_softmax(-1), logits.log_softmax(-1)
    change = p - q
    ours, theirs = p.argmax(-1, keepdim=True), q.argmax(-1, keepdim=True)
    moved = (change.gather(-1, ours) - change.gather(-1, theirs))[:, 0]  # their log-odds
    other = (ours != theirs)[:, 0]
    explained = other & (moved <= allowed.to(moved.device))
    count = int(explained.sum())
    return float((p.exp() * change).sum()), int(other.sum()) - count, count


def _logits(model: Any, packs: list[_Pack]) -> Iterator[Any]:
    """Of each pack's predicted tokens, some at a time: a tensor [tokens, vocabulary], float32."""
    import torch

    dtype = loading.compute_dtype()
    mixed = torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32)
    for pack in packs:
        with torch.inference_mode(), mixed:
            logits = model(
                input_ids=torch.tensor([pack.ids], device=model.device),
                position_ids=torch.tensor([pack.position_ids], device=model.device),
                # A list, not a tensor: a spread model has its head on another GPU than its first layer.
                logits_to_keep=pack.predicted_at,
                use_cache=False,
            ).logits[0]
        yield from (part.float() for part in logits.split(POSITIONS_AT_ONCE))
