"""Held-out loss: how likely a model finds the references, given their documents' prompts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .prompt import encode_answer, fit
from .settings import Document, Loss, SummarizerSettings


@dataclass(frozen=True)
class ReferenceLoss:
    """Computes the loss of references with a loaded model."""

    model: Any
    tokenizer: Any
    settings: SummarizerSettings
    device: str  # where inputs are put

    def of(self, documents: Sequence[Document], references: Sequence[Sequence[str]]) -> list[Loss]:
        """The loss of each document's references; what it is says `Generator.losses`."""
        made = [
            [self._example(document, reference) for reference in several]
            for document, several in zip(documents, references, strict=True)
        ]
        flat = [(prompt, completion) for several in made for prompt, completion, _ in several]
        values = iter(self._mean_nats(flat))
        return [
            Loss(
                sum(next(values) for _ in several) / len(several),
                sum(len(completion) for _, completion, _ in several),
                max(cut for _, _, cut in several),
            )
            for several in made
        ]

    def _example(self, document: Document, reference: str) -> tuple[list[int], list[int], int]:
        """Prompt ids, completion ids, and how much more than in serving was cut from the document."""
        shorter = served = self.settings
        prompt, completion, _ = encode_answer(self.tokenizer, document, reference, served)
        try:
            if (room := self._context() - len(completion)) < served.max_source_tokens:
                shorter = replace(served, max_source_tokens=room)
                prompt, completion, _ = encode_answer(self.tokenizer, document, reference, shorter)
            cut_more = (
                fit(self.tokenizer, document, shorter)[1] - fit(self.tokenizer, document, served)[1]
            )
        except ValueError as error:
            raise ValueError(
                f"a reference of {len(completion)} tokens ({reference[:60]!r}) and its prompt do not "
                f"fit a context of {self._context()} together: {error}"
            ) from error
        if not prompt:
            raise ValueError("the prompt is empty; add text to prompt.template")
        return prompt, completion, cut_more

    def _context(self) -> int:
        """Tokens that the model reads and writes together: by its config, and at least as served."""
        config = self.model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or 0
        return max(int(context), self.settings.max_source_tokens + self.settings.max_new_tokens)

    def _mean_nats(self, examples: list[tuple[list[int], list[int]]]) -> list[float]:
        """Mean negative log-likelihood of each completion after its prompt, in the order given."""
        order = sorted(range(len(examples)), key=lambda i: (-len(examples[i][0]), i))
        size = self.settings.batch_size
        nats: dict[int, float] = {}
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            nats |= dict(zip(batch, self._batch_nats([examples[i] for i in batch]), strict=True))
        return [nats[i] for i in range(len(examples))]

    def _batch_nats(self, examples: list[tuple[list[int], list[int]]]) -> list[float]:
        """`_mean_nats` of one batch, padded on the right, where no real token can see it."""
        import torch

        rows = [[*prompt, *completion] for prompt, completion in examples]
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self.device)
        mask = torch.tensor(
            [[1] * len(r) + [0] * (width - len(r)) for r in rows], device=self.device
        )
        # Logits at t predict token t + 1. They are computed only where some row of the batch needs
        # them: all of 16 x 4,096 by a vocabulary of 32,000 would be 4 GiB in 16 bits.
        spans = [
            (len(prompt) - 1, len(row) - 1) for (prompt, _), row in zip(examples, rows, strict=True)
        ]
        positions = sorted({position for begin, end in spans for position in range(begin, end)})
        with torch.inference_mode():
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                # No tensor: of a model that is spread, the head is on another GPU than the first layer.
                logits_to_keep=positions,
                use_cache=False,
            ).logits
        if logits.shape[1] != len(positions):  # an architecture that ignores logits_to_keep
            logits = logits[:, positions]
        nats = []
        for row, (begin, end), (_, completion) in zip(logits, spans, examples, strict=True):
            first = bisect_left(positions, begin)
            log_probs = row[first : first + end - begin].float().log_softmax(-1)
            targets = torch.tensor(completion, device=self.device)[:, None]
            nats.append(-float(log_probs.gather(-1, targets).double().mean()))
        return nats
