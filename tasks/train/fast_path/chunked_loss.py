"""The loss of completion tokens without their logits: head, softmax and gradient chunk by chunk.

The gradient of the hidden states is computed while a chunk's logits exist (Hsu et al. 2024,
arXiv:2410.10989, section 3.2), so that none are stored for the backward pass; the head is frozen.

Considered: Liger's fused loss (that paper's), one more package for what is 40 lines here, and TRL's
chunked loss, which was not measured against this one. docs/devices.md gives the reasons.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasks.costs.memory_plan import CHUNK_LOGITS
from tasks.models.encoding import IGNORED

HALF_SCALE = 1024.0  # float16's smallest number, 6e-8, is near a rare word's probability


def token_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Sum over tokens of the negative log-likelihood of `targets`, in float32.

    `hidden` is [tokens, width], `weight` [vocabulary, width], `targets` [tokens], IGNORED where a
    token does not count.
    """
    loss: Tensor = _TokenLoss.apply(hidden, weight, bias, targets)
    return loss


class _TokenLoss(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        size = max(64, CHUNK_LOGITS // weight.shape[0])
        total = hidden.new_zeros((), dtype=torch.float32)
        grad = torch.empty_like(hidden)
        factor = HALF_SCALE if hidden.dtype == torch.float16 else 1.0
        for start in range(0, hidden.shape[0], size):
            part, part_targets = hidden[start : start + size], targets[start : start + size]
            counts = (part_targets != IGNORED)[:, None]
            at = part_targets.clamp(min=0)[:, None]
            logits = torch.nn.functional.linear(part, weight, bias).float()
            sums = logits.logsumexp(-1, keepdim=True)
            total += ((sums - logits.gather(-1, at)) * counts).sum()
            slope = logits.sub_(sums).exp_()  # the probabilities
            slope.scatter_add_(-1, at, slope.new_full((), -1.0).expand_as(at))
            slope.mul_(counts * factor)
            grad[start : start + size] = slope.to(weight.dtype) @ weight
        ctx.save_for_backward(grad)
        ctx.factor = factor
        return total

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (grad.float() * (above / ctx.factor)).to(grad.dtype), None, None, None
