"""Drift: how far the merged model's predictions are from the adapter's, on tokens of references."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from tasks.contracts.errors import MergeError
from tasks.contracts.recipe import Merge, Recipe
from tasks.contracts.records import Drift, Row, read_rows
from tasks.models import loading
from tasks.models.encoding import IGNORED, Examples, encode_for
from tasks.models.prepared_base import PreparedBase


def measure(base: PreparedBase, adapter: Path, merged: Path, rows: Path, recipe: Recipe) -> Drift:
    """Mean KL(adapter || merged), nats a token, and how often both rank the same token first.

    The live adapter runs on the base as it was quantized in training, the merged model in the
    precision it will be served in; one after the other, so that memory holds only one. Raises
    MergeError when no GPUs' memory holds a model.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        base.path, local_files_only=True, trust_remote_code=False
    )
    sample = _sample(read_rows(rows), recipe.merge.drift_rows)
    examples = encode_for(sample, tokenizer, base)
    of_adapter = _log_probabilities(_live_model(base.path, adapter, recipe), examples)
    _free_memory()
    of_merged = _log_probabilities(_merged_model(merged), examples)
    kl = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(of_adapter, of_merged, strict=True))
    same = sum(
        int((p.argmax(-1) == q.argmax(-1)).sum())
        for p, q in zip(of_adapter, of_merged, strict=True)
    )
    tokens = sum(len(p) for p in of_adapter)
    return Drift(kl=kl / tokens, top1_agreement=same / tokens, tokens=tokens)


def refuse(drift: Drift, settings: Merge) -> None:
    """Raise MergeError when the drift is past the recipe's tolerance (or is not a number)."""
    if drift.kl <= settings.max_kl and drift.top1_agreement >= settings.min_top1_agreement:
        return
    raise MergeError(
        f"the merged model drifted from its adapter, over {drift.tokens} tokens: "
        f"KL {drift.kl:.1e} nats a token (merge.max_kl {settings.max_kl:g}), "
        f"top-1 agreement {drift.top1_agreement:.3f} (merge.min_top1_agreement "
        f"{settings.min_top1_agreement:g}); merge.onto is {settings.onto}, and quantized_base is "
        "closest to what was trained"
    )


def _sample(rows: list[Row], count: int) -> list[Row]:
    """`count` rows spread evenly over the file, each with its first reference."""
    step = max(1, len(rows) // count)
    chosen = rows[::step][:count]
    return [Row(row.id, row.source, row.document, row.references[:1]) for row in chosen]


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


def _log_probabilities(model: Any, examples: Examples) -> list[Any]:
    """For each example a tensor [completion tokens, vocabulary] on the CPU, float32."""
    import torch

    dtype = loading.compute_dtype()
    mixed = torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32)
    log_probabilities = []
    for ids, labels in zip(examples.input_ids, examples.labels, strict=True):
        # A list, not a tensor: a spread model has its head on another GPU than its first layer.
        positions = [i - 1 for i, label in enumerate(labels) if label != IGNORED]
        with torch.inference_mode(), mixed:
            logits = model(
                input_ids=torch.tensor([ids], device=model.device),
                logits_to_keep=positions,
                use_cache=False,
            ).logits[0]
        log_probabilities.append(logits.float().log_softmax(-1).cpu())
    return log_probabilities
