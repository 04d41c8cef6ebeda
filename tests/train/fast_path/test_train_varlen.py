"""Attention over packed rows as one operation: rows see themselves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tasks.train.fast_path import varlen_attention

ENDS = [0, 7, 8, 20]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_it_is_masked_attention(window: int | None, kv_heads: int) -> None:
    """Outputs and gradients of one attention with a dense mask; what fills up the bounds is ignored."""
    torch.manual_seed(0)
    query = torch.randn(1, 4, 20, 8, requires_grad=True)
    key, value = (torch.randn(1, kv_heads, 20, 8, requires_grad=True) for _ in range(2))
    row = torch.repeat_interleave(torch.arange(3), torch.tensor(ENDS).diff())
    back = torch.arange(20)[:, None] - torch.arange(20)
    mask = (back >= 0) & (row[:, None] == row)
    if window:
        mask &= back < window
    wider = [x.repeat_interleave(4 // kv_heads, 1) for x in (key, value)]
    expected = scaled_dot_product_attention(query, *wider, attn_mask=mask, scale=0.3)
    found, _ = varlen_attention.steady_rows(
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
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)
    weight = torch.randn_like(found)
    ours = torch.autograd.grad((found * weight).sum(), (query, key, value))
    theirs = torch.autograd.grad((expected.transpose(1, 2) * weight).sum(), (query, key, value))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("setting", [{"dropout": 0.1}, {"softcap": 50.0}, {"s_aux": torch.ones(2)}])
def test_what_it_does_not_do_is_refused(setting: dict[str, Any]) -> None:
    """Dropout, soft caps and sinks would be left out without a word."""
    x = torch.randn(1, 2, 4, 8)
    bounds, sizes = torch.tensor([0, 4], dtype=torch.int32), torch.tensor([4, 1])
    given = {"cu_seq_lens_q": bounds, "max_length_q": sizes, "rows_kernel": varlen_attention.BY_ROW}
    with pytest.raises(ValueError, match="is not served here"):
        varlen_attention.steady_rows(None, x, x, x, None, **given, **setting)
