"""NF4 on a CPU gives the weights that a GPU would compute with, whatever the sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from tasks import loading


@pytest.mark.parametrize("columns", [64, 96, 688])
def test_rounding_is_as_fine_in_rows_that_are_no_whole_number_of_blocks(columns: int) -> None:
    """The error is that of 16 levels: about a tenth of the weights' own size."""
    torch.manual_seed(0)
    weight = torch.randn(32, columns) * 0.02
    error = loading.nf4_rounded(weight, torch.float32) - weight
    assert error.pow(2).mean().sqrt() < 0.12 * weight.pow(2).mean().sqrt()
    again = loading.nf4_rounded(weight.bfloat16(), torch.bfloat16)
    assert torch.equal(again, loading.nf4_rounded(weight.bfloat16(), torch.float32).bfloat16())


@pytest.mark.parametrize("hidden", [64, 96])
def test_a_quantized_layer_computes_with_the_rounded_weights(hidden: int, tmp_path: Path) -> None:
    """bitsandbytes' own CPU kernel would not, at 96: those layers are mended on loading."""
    base = tiny.make_tiny_base(tmp_path, hidden=hidden)
    stored = load_file(base / "model.safetensors")
    model = loading.load_base(base, "nf4", torch.float32).train()
    for name, layer in model.named_modules():
        if name.endswith("_proj"):
            rounded = loading.nf4_rounded(stored[f"{name}.weight"], torch.float32)
            columns = torch.eye(layer.in_features)
            torch.testing.assert_close(layer(columns).T, rounded, atol=1e-6, rtol=1e-5)
            assert not layer.weight.requires_grad
