"""Few bits on a CPU give the weights that a GPU would compute with, whatever the sizes."""

from __future__ import annotations

from pathlib import Path

import numeric
import pytest
import shapes
import tiny
import torch
from safetensors.torch import load_file

from tasks.merge.plan import quantized_modules
from tasks.models import loading
from tasks.models.compatibility import Layers
from tasks.models.quantization import rounded
from tasks.models.safetensors_headers import tensor_shapes


@pytest.mark.parametrize("columns", [64, 96, 688])
def test_rounding_is_as_fine_in_rows_that_are_no_whole_number_of_blocks(columns: int) -> None:
    """The error is that of 16 levels: about a tenth of the weights' own size."""
    torch.manual_seed(0)
    weight = torch.randn(32, columns) * 0.02
    error = rounded(weight, "nf4", torch.float32) - weight
    assert error.pow(2).mean().sqrt() < 0.12 * weight.pow(2).mean().sqrt()
    again = rounded(weight.bfloat16(), "nf4", torch.bfloat16)
    assert torch.equal(again, rounded(weight.bfloat16(), "nf4", torch.float32).bfloat16())


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("hidden", [64, 96])
def test_a_quantized_layer_computes_with_the_rounded_weights(
    hidden: int, kind: str, tmp_path: Path
) -> None:
    """Forward and backward, biases added, against float64.

    At a width of 96 bitsandbytes' own CPU kernel for 4 bits would compute with other weights.
    """
    base = shapes.make_base(tmp_path, "phi", hidden_size=hidden)
    stored = load_file(base / "model.safetensors")
    model = loading.load_base(base, kind, torch.float32).train()
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)
    }
    assert {name.rpartition(".")[2] for name in layers} == {*shapes.TARGETS["phi"], "lm_head"}
    for name, layer in layers.items():
        weight, bias = stored[f"{name}.weight"], stored[f"{name}.bias"]
        if name != "lm_head":
            weight = rounded(weight, kind, torch.float32)
            assert not torch.equal(weight, stored[f"{name}.weight"])
            assert not layer.weight.requires_grad
        x = torch.randn(2, 5, layer.in_features, requires_grad=True)
        y = layer(x)
        exact = x.double() @ weight.double().T + bias.double()
        numeric.assert_close(y, exact, numeric.PRODUCTS, name=name)
        slope = torch.randn_like(y)
        y.backward(slope)
        numeric.assert_close(x.grad, slope.double() @ weight.double(), numeric.PRODUCTS, name=name)


@pytest.mark.parametrize(
    ("quantization", "error"), [("nf4", 0.12), ("fp4", 0.16), ("int8", 0.01), ("none", 0.0)]
)
def test_fewer_bits_round_more(quantization: str, error: float, tmp_path: Path) -> None:
    """NF4 is made for normal weights and beats FP4; int8 is ten times as fine; none is exact."""
    base = tiny.make_tiny_base(tmp_path)
    stored = load_file(base / "model.safetensors")
    model = loading.load_base(base, quantization, torch.float32).train()
    for name, layer in model.named_modules():
        if name.endswith("_proj"):
            weight = stored[f"{name}.weight"].float()
            relative_error = (layer(torch.eye(layer.in_features)).T - weight).norm() / weight.norm()
            assert error / 2 <= relative_error <= error


def test_the_merge_rounds_just_the_layers_that_were_quantized(tmp_path: Path) -> None:
    """Found without weights, by transformers' rules: none of them the head."""
    base = shapes.make_base(tmp_path, "phi")
    expected = {name for name in Layers.of(tensor_shapes(base)).inner if "lm_head" not in name}
    for kind in ("nf4", "fp4", "int8"):
        assert quantized_modules(base, kind) == (expected, frozenset())
    assert quantized_modules(base, "none") == (frozenset(), frozenset())
