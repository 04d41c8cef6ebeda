"""How a causal model is called on packed rows of fixed shapes, and what is seen by calling it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from tasks.train.fast_path import varlen_attention

FEW = 8  # tokens, to see how a model works
CLOSE = 2e-2  # our head against the model's own, in 16 bits


def core_of(causal: Any) -> Any:
    """The model without its head."""
    return getattr(causal, causal.base_model_prefix)


def arguments(causal: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch that `Steady` made as the model takes it."""
    embedded = inputs.get("inputs_embeds")
    if embedded is None:
        embedded = causal.get_input_embeddings()(inputs["input_ids"])
    return {
        # All layers alike, so that one compilation serves the first one too.
        "inputs_embeds": embedded.detach().requires_grad_(torch.is_grad_enabled()),
        "position_ids": inputs["position_ids"],
        # Of four dimensions, or transformers looks for packed rows and waits for the answer.
        "attention_mask": embedded.new_zeros(1, 1, 1, 1),
        "cu_seq_lens_q": inputs["bounds"],
        "max_length_q": torch.tensor([inputs["longest"], inputs["row_count"]]),
        "rows_kernel": kernel(causal),
        "use_cache": False,
    }


def kernel(causal: Any) -> str:
    """The attention kernel that serves a model."""
    config, weight = core_of(causal).config, causal.get_output_embeddings().weight
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return varlen_attention.kernel_for(weight.device, weight.dtype, width)


def watch(causal: Any) -> None:
    """Run the decoder once on a few tokens."""
    # In training mode: bitsandbytes repacks weights for a CPU when they are used in the other one.
    with torch.no_grad(), mode(causal, training=True):
        core_of(causal)(**_few(causal))


def head_is_plain(causal: Any) -> bool:
    """Whether nothing follows the head: some models scale or cap their logits."""
    few = _few(causal)
    with torch.no_grad(), mode(causal, training=False):  # without dropout
        theirs = causal(**few).logits.float()
        hidden = core_of(causal)(**few).last_hidden_state
        ours = causal.get_output_embeddings()(hidden).float()
    return bool(torch.allclose(ours, theirs, rtol=CLOSE, atol=CLOSE * float(theirs.std())))


@contextlib.contextmanager
def mode(model: Any, training: bool) -> Iterator[None]:
    """In training mode, or not, and afterwards as it was."""
    was = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(was)


def _few(causal: Any) -> dict[str, Any]:
    """A few tokens, as the model takes them."""
    device = causal.get_input_embeddings().weight.device
    inputs = {
        "input_ids": torch.arange(FEW, device=device)[None],
        "position_ids": torch.arange(FEW, device=device)[None],
        "bounds": torch.tensor([0, FEW], dtype=torch.int32, device=device),
        "longest": FEW,
        "row_count": 1,
    }
    return arguments(causal, inputs)
