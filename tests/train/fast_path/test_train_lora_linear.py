"""Linear layers with adapters as one operation: the plain formula's values and gradients."""

from __future__ import annotations

from pathlib import Path

import numeric
import pytest
import tiny
import torch

from tasks.models import loading, quantization
from tasks.train.fast_path import install, lora_linear, nf4_kernel


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def plain(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    down: list[torch.Tensor],
    up: list[torch.Tensor],
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """The formula, layer by layer."""
    added = biases or [torch.zeros(w.shape[0]) for w in weights]
    return tuple(
        x @ w.T + bias + scale * (x @ a.T) @ b.T
        for w, bias, a, b in zip(weights, added, down, up, strict=True)
    )


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("ranks", [(8, 8, 8), (8,), (4, 0, 16)])
def test_it_is_the_formula(with_bias: bool, ranks: tuple[int, ...]) -> None:
    """Outputs and all gradients, for one layer or several, of equal ranks or not, rank 0 too.

    The reference is the formula in float64; the operation sums in float32.
    """
    outs = [64, 32, 96][: len(ranks)]
    x = torch.randn(2, 10, 48, requires_grad=True)
    weights = [torch.randn(out, 48) for out in outs]
    biases = [torch.randn(out) for out in outs] if with_bias else []
    down = [torch.randn(rank, 48, requires_grad=True) for rank in ranks]
    up = [torch.randn(out, rank, requires_grad=True) for out, rank in zip(outs, ranks, strict=True)]
    output_grads = [torch.randn(2, 10, out) for out in outs]
    computed = {}
    for dtype, run in ((torch.float64, plain), (torch.float32, lora_linear.adapted)):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in (x, *down, *up)]
        frozen = [[tensor.to(dtype) for tensor in tensors] for tensors in (weights, biases)]
        outputs = run(inputs[0], *frozen, inputs[1 : len(outs) + 1], inputs[len(outs) + 1 :], 2.0)
        slopes = [grad.to(dtype) for grad in output_grads]
        computed[dtype] = [*outputs, *torch.autograd.grad(outputs, inputs, slopes)]
    for ours, reference in zip(computed[torch.float32], computed[torch.float64], strict=True):
        numeric.assert_close(ours, reference, numeric.PRODUCTS)


def test_a_compiler_is_told_the_right_shapes() -> None:
    """Compiled as one graph, outputs and gradients are the same."""
    x = torch.randn(1, 10, 32, requires_grad=True)
    weights = [torch.randn(64, 32), torch.randn(32, 32)]
    down = [torch.randn(8, 32, requires_grad=True) for _ in weights]
    up = [torch.randn(w.shape[0], 8, requires_grad=True) for w in weights]

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        first, second = lora_linear.adapted(
            tensors[0], weights, [], list(tensors[1:3]), list(tensors[3:]), 1.0
        )
        return first.relu().sum() + second.relu().sum()

    given = [x, *down, *up]
    expected = torch.autograd.grad(run(*given), given)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=False)
    for ours, theirs in zip(torch.autograd.grad(compiled(*given), given), expected, strict=True):
        numeric.assert_close(ours, theirs, numeric.PRODUCTS)


def test_nf4_weights_are_bitsandbytes_own(tmp_path: Path) -> None:
    """A quantized layer's output is the output of bitsandbytes' layer."""
    base = tiny.make_tiny_base(tmp_path, hidden=128)
    layer = loading.load_base(base, "nf4", torch.float32).model.layers[0].mlp.up_proj.train()
    weight = lora_linear.frozen(layer)
    assert len(weight.parts) == 5
    x = torch.randn(1, 6, 128)
    (output,) = lora_linear.adapted(
        x, list(weight.parts), [], [torch.zeros(0, 128)], [torch.zeros(256, 0)], 1.0
    )
    numeric.assert_close(output, layer(x), numeric.PRODUCTS)
    wide = nf4_kernel.wide(weight.parts, weight.shape, torch.float32)
    once = loading.load_base(base, "nf4", torch.float32)
    quantization.dequantize_once(once)
    assert torch.equal(once.model.layers[0].mlp.up_proj.weight, wide)


def test_unknown_weights_are_refused() -> None:
    """A layer that this cannot compute is named, not guessed at."""
    with pytest.raises(ValueError, match="a base layer of type Conv1d"):
        lora_linear.frozen(torch.nn.Conv1d(4, 4, 1))


def test_layers_are_grouped_by_what_they_read(tmp_path: Path) -> None:
    """Queries, keys and values together, gate and up together, in the order of their calls."""
    model = loading.load_base(tiny.make_tiny_base(tmp_path), "none", torch.float32)
    ids = torch.arange(4)[None]
    pattern = install.pattern_of(model.model.layers[0], lambda: model(ids))
    assert pattern == [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ]
