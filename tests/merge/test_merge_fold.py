"""The formulas of a merge, against PEFT's own."""

from __future__ import annotations

import numeric
import pytest
import torch

from tasks.merge.fold import kind_of, merged_weight, scale_of


def test_kind_and_scale_are_read_as_peft_reads_them() -> None:
    """alpha / r, alpha / sqrt(r) under rsLoRA; a mixture is no kind that a recipe can name."""
    from peft import LoraConfig, get_peft_model

    for more in ({}, {"use_rslora": True}, {"use_dora": True}):
        config = LoraConfig(r=9, lora_alpha=4.5, target_modules=["0"], **more)
        model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config)
        assert scale_of(config.to_dict()) == model.base_model.model[0].scaling["default"]
    assert kind_of({}) == "lora"
    assert kind_of({"use_rslora": True}) == "rslora"
    assert kind_of({"use_dora": True}) == "dora"
    assert kind_of({"use_dora": True, "use_rslora": True}) == "dora+rslora"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_measured_in_the_type_that_peft_measures_in(dtype: torch.dtype) -> None:
    """In 16 bits a norm is off by up to 0.2%, in training and in the merge alike."""
    from peft.tuners.lora.dora import DoraLinearLayer

    torch.manual_seed(0)
    w, a, b = torch.randn(48, 32), torch.randn(4, 32), torch.randn(48, 4)
    magnitude, scale = torch.rand(48) + 1, 0.75
    theirs = DoraLinearLayer(False).get_weight_norm(w.to(dtype), (b @ a).to(dtype), scale)
    assert theirs.dtype == dtype
    merged = merged_weight(w.to(dtype), a, b, scale, magnitude, norm_dtype=dtype)
    without_magnitude = merged_weight(w.to(dtype), a, b, scale)
    assert merged.dtype == without_magnitude.dtype == torch.float32
    numeric.assert_close(
        merged, magnitude[:, None] * without_magnitude / theirs.float()[:, None], numeric.PRODUCTS
    )
    norm_error = (merged.double().norm(dim=1) / magnitude - 1).abs().max()
    if dtype == torch.float32:
        assert norm_error < numeric.PRODUCTS
    else:  # more than float32's rounding, and less than one unit of bf16, the coarser of the two
        assert numeric.PRODUCTS < norm_error < 2**-7
