"""Call a causal model on packed rows of fixed shapes, and find out how it works by calling it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from tasks.train.fast_path import varlen_attention

FEW = 8  # tokens, for trial calls
CLOSE = 2e-2  # our logits against the model's, in 16 bits, in standard deviations


def core_of(causal: Any) -> Any:
    """The model without its head."""
    return getattr(causal, causal.base_model_prefix)


def arguments(causal: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The model's arguments for a batch of FixedShapeCollator."""
    embedded = inputs.get("inputs_embeds")
    if embedded is None:
        embedded = causal.get_input_embeddings()(inputs["input_ids"])
    return {
        # Requires a gradient as in all later layers, so that one compilation serves the first one too.
        "inputs_embeds": embedded.detach().requires_grad_(torch.is_grad_enabled()),
        "position_ids": inputs["position_ids"],
        # Of four dimensions: otherwise transformers looks for packed rows, and waits for the GPU.
        "attention_mask": embedded.new_zeros(1, 1, 1, 1),
        "cu_seq_lens_q": inputs["bounds"],
        "max_length_q": torch.tensor([inputs["longest"], inputs["row_count"]]),
        "rows_kernel": kernel(causal),
        "use_cache": False,
    }


def kernel(causal: Any) -> str:
    """The attention kernel for a model."""
    config, weight = core_of(causal).config, causal.get_output_embeddings().weight
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return varlen_attention.kernel_for(weight.device, weight.dtype, width)


def watch(causal: Any) -> None:
    """Run the decoder once on a few tokens."""
    # In training mode: in evaluation mode bitsandbytes repacks weights for its CPU kernel.
    with torch.no_grad(), mode(causal, training=True):
        core_of(causal)(**_few(causal))


def head_is_plain(causal: Any) -> bool:
    """Whether the logits are the head's output: some models scale or cap them."""
    few = _few(causal)
    with torch.no_grad(), mode(causal, training=False):  # without dropout
        logits = causal(**few).logits.float()
        hidden = core_of(causal)(**few).last_hidden_state
        head_output = causal.get_output_embeddings()(hidden).float()
    tolerance = CLOSE * float(logits.std())
    return bool(torch.allclose(head_output, logits, rtol=CLOSE, atol=tolerance))


@contextlib.contextmanager
def mode(model: Any, training: bool) -> Iterator[None]:
    """Set training or evaluation mode, and restore the former one afterwards."""
    was = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(was)


def _few(causal: Any) -> dict[str, Any]:
    """The model's arguments for a few tokens."""
    device = causal.get_input_embeddings().weight.device
    inputs = {
        "input_ids": torch.arange(FEW, device=device)[None],
        "position_ids": torch.arange(FEW, device=device)[None],
        "bounds": torch.tensor([0, FEW], dtype=torch.int32, device=device),
        "longest": FEW,
        "row_count": 1,
    }
    return arguments(causal, inputs)
