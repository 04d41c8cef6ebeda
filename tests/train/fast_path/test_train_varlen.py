"""Attention over packed rows as one operation: rows see themselves alone."""

from __future__ import annotations

from typing import Any

import numeric
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tasks.train.fast_path import varlen_attention

ENDS = [0, 7, 8, 20]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_it_is_masked_attention(window: int | None, kv_heads: int) -> None:
    """Outputs and gradients of attention with a dense mask, in float64; padded bounds are ignored."""
    torch.manual_seed(0)
    query = torch.randn(1, 4, 20, 8, requires_grad=True)
    key, value = (torch.randn(1, kv_heads, 20, 8, requires_grad=True) for _ in range(2))
    row = torch.repeat_interleave(torch.arange(3), torch.tensor(ENDS).diff())
    back = torch.arange(20)[:, None] - torch.arange(20)
    mask = (back >= 0) & (row[:, None] == row)
    if window:
        mask &= back < window
    exact = [x.detach().double().requires_grad_() for x in (query, key, value)]
    wider = [x.repeat_interleave(4 // kv_heads, 1) for x in exact[1:]]
    expected = scaled_dot_product_attention(exact[0], *wider, attn_mask=mask, scale=0.3)
    output, _ = varlen_attention.packed_rows_attention(
        None,
        query,
        key,
        value,
        None,
        cu_seq_lens_q=torch.tensor([*ENDS, 20, 20], dtype=torch.int32),
        max_length_q=torch.tensor([12, 3]),
        rows_kernel=varlen_attention.kernel_for(query.device, query.dtype, 8),
        scaling=0.3,
        sliding_window=window,
    )
    numeric.assert_close(output, expected.transpose(1, 2), numeric.PRODUCTS)
    slope = torch.randn_like(output)
    gradients = torch.autograd.grad(output, (query, key, value), slope)
    references = torch.autograd.grad(expected.transpose(1, 2), exact, slope.double())
    for gradient, reference in zip(gradients, references, strict=True):
        numeric.assert_close(gradient, reference, numeric.PRODUCTS)


@pytest.mark.parametrize("setting", [{"dropout": 0.1}, {"softcap": 50.0}, {"s_aux": torch.ones(2)}])
def test_what_it_does_not_do_is_refused(setting: dict[str, Any]) -> None:
    """Dropout, soft caps and sinks would otherwise be left out silently."""
    x = torch.randn(1, 2, 4, 8)
    bounds, sizes = torch.tensor([0, 4], dtype=torch.int32), torch.tensor([4, 1])
    given = {"cu_seq_lens_q": bounds, "max_length_q": sizes, "rows_kernel": varlen_attention.BY_ROW}
    with pytest.raises(ValueError, match="is not supported here"):
        varlen_attention.packed_rows_attention(None, x, x, x, None, **given, **setting)
