"""A merge that streams writes the same bytes as one that holds whole shards, with less memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from tasks.contracts import digest
from tasks.merge import merge
from tasks.merge.fold import merged_weight
from tasks.merge.layer import ROW_BLOCK_WEIGHTS
from tasks.merge.nf4_rounding import BLOCK, Nf4Matrix
from tasks.merge.shard_file import header, tensors_of
from tasks.models import quantization

PREFIX = "base_model.model."
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SCALE = 1.5  # no power of two: where it is multiplied in then shows


def make_adapter(folder: Path, base: Path, dtype: str = "float32") -> Path:
    """Random, on all linear layers, in PEFT's format."""
    torch.manual_seed(1)
    weights = {n: t for file in base.glob("*.safetensors") for n, t in load_file(file).items()}
    tensors = {}
    for name, weight in weights.items():
        if name.removesuffix(".weight").endswith(TARGETS):
            module = PREFIX + name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = torch.randn(4, weight.shape[1]) * 0.1
            tensors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], 4) * 0.1
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"compute_dtype": dtype})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4 * SCALE, "target_modules": TARGETS}
    config |= {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("rows", [64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_in_parts_are_those_of_the_whole(rows: int, dtype: torch.dtype) -> None:
    """Bit for bit what bitsandbytes makes of it, with blocks of zeros and weights on the bounds."""
    torch.manual_seed(0)
    weight = torch.randn(rows, 192)
    weight[0, :BLOCK] = 0
    codes = Nf4Matrix(weight.numel())
    weight[1, :15], weight[1, 15] = torch.tensor(codes.bounds), 1.0
    parts = [slice(begin, begin + 64 * 192) for begin in range(0, weight.numel(), 64 * 192)]
    flat = weight.reshape(-1)
    for part in parts:
        codes.quantize(part.start, flat[part].to(dtype, copy=True).float())
    codes.quantize_scales(codes.scales.mean())
    given = torch.cat([codes.dequantize(p.start, flat[p].numel(), dtype) for p in parts])
    assert torch.equal(given.view(weight.shape), quantization.rounded(weight, "nf4", dtype))


@pytest.mark.parametrize("onto", ["quantized_base", "original_base"])
def test_the_bytes_are_those_of_whole_shards(onto: str, tmp_path: Path) -> None:
    """Layers of several parts, each shard as save_file writes the formula's tensors."""
    base = tiny.make_tiny_base(tmp_path / "base", shards=3, hidden=448, layers=1, tied=False)
    assert ROW_BLOCK_WEIGHTS < 2 * 448 * 448  # as gate_proj has
    adapter = make_adapter(tmp_path / "adapter", base)
    recipe = tiny.make_recipe(base, merge={"onto": onto})
    result = merge.merge(tiny.prepared(base, recipe), adapter, recipe, tmp_path / "out")
    lora = load_file(adapter / "adapter_model.safetensors")
    for shard in sorted(base.glob("*.safetensors")):
        expected = {}
        for name, weight in load_file(shard).items():
            module = PREFIX + name.removesuffix(".weight")
            expected[name] = weight
            if f"{module}.lora_A.weight" in lora:
                a, b = (lora[f"{module}.lora_{part}.weight"] for part in "AB")
                if onto == "quantized_base":
                    weight = quantization.rounded(weight, "nf4", torch.float32)  # noqa: PLW2901
                expected[name] = merged_weight(weight, a, b, SCALE).bfloat16()
        save_file(expected, tmp_path / "expected", {"format": "pt"})
        assert (tmp_path / "out" / shard.name).read_bytes() == (tmp_path / "expected").read_bytes()
    assert result["digest"] == digest.of_folder(tmp_path / "out")


def test_the_header_is_save_file_s(tmp_path: Path) -> None:
    """Types in its order, names of all kinds, empty tensors and scalars."""
    types = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32]
    types += [torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16, torch.uint64]
    types += [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint32]
    tensors = {f"{number % 3}.{t}": torch.zeros(3, 5).to(t) for number, t in enumerate(types)}
    tensors |= {'\u00e9"\\\n/x': torch.ones(2), "empty": torch.ones(0, 3), "one": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "all", {"format": "pt"})
    stored = tensors_of(tmp_path / "all")
    written = (tmp_path / "all").read_bytes()
    assert written.startswith(header(stored))
    assert [tensor.begin for tensor in stored] == sorted(tensor.begin for tensor in stored)
    assert len(header(stored)) + sum(tensor.size_bytes for tensor in stored) == len(written)


MEASURED = """
import sys
from pathlib import Path
from tasks.merge import merge
from tasks.merge.plan import plan_merge
from tasks.models.prepared_base import PreparedBase
from tasks.contracts.recipe import Recipe
import json
base, adapter, recipe, out = sys.argv[1:]
recipe = Recipe.model_validate_json(recipe)
base, adapter = PreparedBase.from_json(json.loads(base)), Path(adapter)
plan_merge(base, adapter, recipe)  # what a merge imports
def held(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))
Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
before = held("VmRSS")
merge.merge(base, adapter, recipe, Path(out))
print(held("VmHWM") - before)
"""


@pytest.mark.full
def test_memory_is_less_than_two_shards(tmp_path: Path) -> None:
    """In a process of its own: a base of two shards of 160 MB, in matrices of 8 MB."""
    base = tiny.make_tiny_base(tmp_path / "base", shards=2, hidden=1408, layers=9, tied=False)
    adapter = make_adapter(tmp_path / "adapter", base)
    recipe, prepared = tiny.make_recipe(base).model_dump_json(), tiny.prepared(base).as_json()
    arguments = [json.dumps(prepared), str(adapter), recipe, str(tmp_path / "out")]
    command = [sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    largest = max(file.stat().st_size for file in base.glob("*.safetensors"))
    assert largest > 150e6
    assert int(done.stdout.split()[-1]) < 2 * largest
