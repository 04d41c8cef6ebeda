"""The dequantized base and the adapter give the merged model's bits, whatever the quantization."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_merge_stream import make_adapter

from tasks.contracts import digest
from tasks.merge import dequantized, merge
from tasks.models import quantization
from tasks.serving.summarizer import adapter

FULL = pytest.mark.full


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("nf4", "float32"),
        pytest.param("nf4", "bfloat16", marks=FULL),
        pytest.param("fp4", "float32", marks=FULL),
        ("int8", "bfloat16"),
        pytest.param("none", "float32", marks=FULL),
    ],
)
def test_base_and_adapter_are_the_merged_model(kind: str, dtype: str, tmp_path: Path) -> None:
    """Bit for bit, over two shards; the base holds what training computed with, and keeps the rest."""
    base = tiny.make_tiny_base(tmp_path / "base", shards=2, layers=1, tied=False)
    own = make_adapter(tmp_path / "adapter", base, dtype)
    parts = {"base": {"quantization": kind}, "register": {"as": "adapter"}}
    recipe = tiny.make_recipe(base, **parts)
    prepared = tiny.prepared(base, recipe)
    merged = merge.merge(prepared, own, recipe, tmp_path / "merged")
    values = recipe.model_dump(mode="json")
    dequantized.write(prepared.as_json(), str(own), values, str(tmp_path / "dequantized"))
    for file in base.glob("*.safetensors"):
        stored = load_file(tmp_path / "dequantized" / file.name)
        for name, weight in load_file(file).items():
            if kind != "none" and "proj" in name:
                weight = quantization.rounded(weight, kind, getattr(torch, dtype))  # noqa: PLW2901
            assert torch.equal(stored[name], weight), name
            assert stored[name].dtype == weight.dtype
    package = shutil.copytree(tmp_path / "merged", tmp_path / "package")
    shards = {file.name: tmp_path / "merged" / file.name for file in package.glob("*.safetensors")}
    for name in shards:
        (package / name).unlink()
    shutil.copytree(own, package / adapter.FOLDER)
    files = adapter.digests_in(tmp_path / "dequantized")
    adapter.write_record(package, adapter.StoredBase("base", "models:/m-1", files), shards)
    adapter.merge_weights(package, tmp_path / "dequantized", tmp_path / "whole")
    assert digest.of_folder(tmp_path / "whole") == merged["digest"]


def test_the_exact_sum_has_one_result() -> None:
    """Of the whole matrix and of its parts, on any number of threads, and at other places of memory."""
    torch.manual_seed(0)
    weight, a, b = torch.randn(300, 70).bfloat16(), torch.randn(9, 70), torch.randn(300, 9)
    whole = adapter.exact_sum(weight, a, b, 1.1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for step in (1, 7, 300):
            rows = [slice(begin, begin + step) for begin in range(0, 300, step)]
            parts = [adapter.exact_sum(weight[r, 1:], a[:, 1:], b[r], 1.1) for r in rows]
            assert torch.equal(torch.cat(parts), whole[:, 1:])
    finally:
        torch.set_num_threads(threads)
    exact = weight.double() + 1.1 * (b.double() @ a.double())
    assert torch.equal(whole, exact.float())
