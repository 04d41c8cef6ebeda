"""The weight that an adapted layer computes with, as one matrix: PEFT's formulas, part by part.

Not PEFT's own merge: it needs the whole model in memory, and rounds the merged weights of a 4-bit layer
to 4 bits again.
"""

from __future__ import annotations

from typing import Any

from tasks.serving.summarizer.adapter import scale_of

__all__ = ["KINDS", "kind_of", "merged_weight", "scale_of"]

# The keys of PEFT's adapter_config.json that name the kind; without them it is LoRA.
KINDS = {"use_dora": "dora", "use_rslora": "rslora"}


def kind_of(config: dict[str, Any]) -> str:
    """An adapter's kind, as `adapter.kind` names it. Several kinds, joined by `+`, cannot be merged."""
    return "+".join(kind for key, kind in KINDS.items() if config.get(key)) or "lora"


def merged_weight(
    weight: Any, a: Any, b: Any, scale: float, magnitude: Any = None, norm_dtype: Any = None
) -> Any:
    """W + s B A in float32; with DoRA's `magnitude` m, its rows scaled to the lengths m.

    `weight` is [out, in], `a` [r, in], `b` [out, r], `magnitude` [out]. DoRA (arXiv:2402.09353):
    m (W + s B A) / ||W + s B A||, a norm for each row. PEFT takes the norm in the type of the
    layer's input, `norm_dtype` (torch.dtype), and so do we: a norm's rounding scales its whole row.
    """
    import torch

    product = b @ a
    merged = weight.float() + scale * product
    if magnitude is None:
        return merged
    for_norm = weight.to(norm_dtype) + scale * product.to(norm_dtype)
    norms = torch.linalg.norm(for_norm, dim=1).to(norm_dtype)
    return (magnitude / norms.float())[:, None] * merged
