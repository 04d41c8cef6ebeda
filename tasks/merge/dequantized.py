"""The base that an adapter was trained against, as a model of its own: quantized and dequantized again.

Under `register.as: adapter` it is stored beside the adapter. Its rounded weights have the type that they were
computed in, which holds them exactly; so base and adapter give the merged model's bits.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from tasks.contracts.recipe import Recipe
from tasks.merge.layer import LayerMerger
from tasks.merge.merge import companion_files, copy_companions, writing
from tasks.merge.plan import plan_merge
from tasks.merge.shard_file import header, in_order, read_into, tensors_of
from tasks.merge.shard_pipeline import TYPES, WEIGHT, one_thread_each
from tasks.models.prepared_base import PreparedBase
from tasks.models.safetensors_headers import StoredTensor

WIDER = 2  # float32 for a base in 16 bits
NAMES = {dtype: name for name, dtype in TYPES.items()}


def write(base: dict[str, Any], adapter: str, recipe: dict[str, Any], out: str) -> None:
    """Write the dequantized base to the folder `out`, complete or not at all.

    A child-process target: JSON-able arguments, `base`: PreparedBase.as_json. Shard names and the index are
    the base's. Raises MergeError as the merge does.
    """
    prepared, parsed = PreparedBase.from_json(base), Recipe.model_validate(recipe)
    plan = replace(plan_merge(prepared, Path(adapter), parsed), adapted=frozenset())
    folder = Path(out)
    partial = folder.with_name(folder.name + ".partial")
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    sources = [*plan.shards, *companion_files(prepared.path)]
    with (
        writing(partial, sources, WIDER if plan.quantized else 1),
        one_thread_each() as threads,
    ):
        merger = LayerMerger(plan, threads)
        for shard in plan.shards:
            _write_shard(shard, merger, partial / shard.name)
        copy_companions(prepared, partial, plan.dtype if plan.quantized else plan.stored)
        partial.rename(folder)


def _write_shard(shard: Path, merger: LayerMerger, target: Path) -> None:
    originals = {tensor.name: tensor for tensor in tensors_of(shard)}
    listed = [_as_computed(tensor, merger) for tensor in originals.values()]
    order = in_order(listed)
    with shard.open("rb") as source, target.open("xb") as file:
        file.write(header(order))
        for tensor in order:
            original = originals[tensor.name]
            content = bytearray(original.size_bytes)
            read_into(source.fileno(), memoryview(content), original.begin)
            if not _is_rounded(original, merger):
                file.write(content)
                continue
            flat = torch.frombuffer(content, dtype=TYPES[original.dtype])
            weight = flat.view(original.shape).to(merger.dtype)
            merger.fold(tensor.name.removesuffix(WEIGHT), weight)
            file.write(weight.reshape(-1).view(torch.uint8).numpy().data)


def _is_rounded(tensor: StoredTensor, merger: LayerMerger) -> bool:
    return tensor.name.endswith(WEIGHT) and merger.changes(tensor.name.removesuffix(WEIGHT))


def _as_computed(tensor: StoredTensor, merger: LayerMerger) -> StoredTensor:
    """As it is written: rounded weights in the type that training computed with."""
    if not _is_rounded(tensor, merger):
        return tensor
    size_bytes = prod(tensor.shape) * merger.dtype.itemsize
    return replace(tensor, dtype=NAMES[merger.dtype], size_bytes=size_bytes)
