"""A loaded package: documents in, summaries out.

Over 250 lines: one class, whose methods share the loaded model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .chat import answer_end
from .load_model import load_model, needs_several_gpus, parameter_count
from .loss import ReferenceLoss
from .map_reduce import condense
from .output import OutputRules, greedy_arguments
from .prompt import encode, encode_and_count, full_length
from .settings import AUTO_SLOTS, Document, Loss, SummarizerSettings, Summary
from .stream import TokenQueue, TokenStreamer, stop_when, stream_text


class Generator:
    """A loaded package: documents in, summaries out, greedy, in the order given.

    Evaluation, `precis ask` and MLflow call a package's own Generator, whatever version wrote it: its
    public methods and attributes are an interface between versions.
    """

    # What `losses` computes; under another definition it is another metric (sealed, evaluate/seal.py).
    loss_definition = "nats a completion token with end-of-text, mean over a document's references"

    def __init__(self, package: Path, device: str | None = None) -> None:
        """`device`: cpu or cuda; None: the GPUs if there are any."""
        import torch
        from transformers import AutoTokenizer

        self.settings = SummarizerSettings.load(package)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(package, trust_remote_code=False)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        end_text, turn_end = answer_end(self.tokenizer, self.settings)
        self.end_texts = (end_text,) if end_text else ()
        end_ids = (self.tokenizer.eos_token_id, turn_end)
        self.end_ids = [i for i in dict.fromkeys(end_ids) if i is not None]
        self.is_spread = device is None and needs_several_gpus(2 * parameter_count(package))
        self.model = load_model(package, self.device, self.is_spread)
        if self.is_spread:
            self.device = str(self.model.device)  # the first layer's
        self.refusal: str | None = None  # why `generate` is used though continuous was asked for
        self._decoder: tuple[SummarizerSettings, Any] | None = None

    def batches(self, documents: Sequence[Document]) -> list[list[int]]:
        """Indices of documents by prompt length (`prompt_tokens`), longest first, in batches."""
        lengths = [self._prompt_tokens(text) for text in documents]
        order = sorted(range(len(documents)), key=lambda i: (-lengths[i], i))
        size = self.settings.batch_size
        return [order[i : i + size] for i in range(0, len(order), size)]

    def summarize(self, documents: Sequence[Document]) -> list[Summary]:
        """Summaries of the documents, in their order."""
        summaries: dict[int, Summary] = {}
        plan = dict(enumerate(self.batches(documents)))
        written = self.summarize_batches(documents, plan)
        for batch, of_batch in zip(plan.values(), written, strict=True):
            summaries |= dict(zip(batch, of_batch, strict=True))
        return [summaries[i] for i in range(len(documents))]

    def summarize_batch(self, documents: Sequence[Document], batch: int = 0) -> list[Summary]:
        """Summaries of one batch, which depend on no other batch: writing it again is a replay."""
        [written] = self.summarize_batches(documents, {batch: list(range(len(documents)))})
        return written

    def summarize_batches(
        self, documents: Sequence[Document], batches: dict[int, list[int]]
    ) -> Iterator[list[Summary]]:
        """Summaries of each batch in turn: a batch's number, and which of the documents are in it.

        Under continuous decoding later batches are begun while the last of an earlier one are still
        being written; what is written is the same (see scheduler.py).
        """
        if (decoder := self.decoder()) is None:
            yield from self._batch_by_batch(documents, batches)
            return
        texts = [documents[i] for batch in batches.values() for i in batch]
        condensed = self._condense(texts)
        prompts = [
            encode_and_count(self.tokenizer, text, self.settings)[0] for text, _ in condensed
        ]
        longest = max(map(len, prompts), default=0)
        if self.settings.decoding == "auto" and not decoder.fits(longest):
            self.refusal = f"memory has no room beside it for a prompt of {longest} tokens"
            self._decoder = self.settings, None
            yield from self._batch_by_batch(documents, batches)
            return
        finished, ids, first = decoder.write(prompts), dict[int, list[int]](), 0
        rules = self._output_rules()
        for number, batch in batches.items():
            places = range(first, first + len(batch))
            first += len(batch)
            while any(i not in ids for i in places):
                ids |= [next(finished)]
            yield self._completed(
                [texts[i] for i in places],
                [condensed[i] for i in places],
                [rules.summary(ids[i], len(prompts[i]), number) for i in places],
            )

    def _batch_by_batch(
        self, documents: Sequence[Document], batches: dict[int, list[int]]
    ) -> Iterator[list[Summary]]:
        """Summaries of each batch in turn, by `generate`."""
        for number, batch in batches.items():
            texts = [documents[i] for i in batch]
            condensed = self._condense(texts)
            written = self._write_batch([text for text, _ in condensed], number)
            yield self._completed(texts, condensed, written)

    def decoder(self) -> Any:
        """The continuous decoder, where settings ask for it and it supports the model.

        None means `generate`; where continuous decoding was asked for, `refusal` then says why not.
        """
        decoding = self.settings.decoding
        if decoding == "generate" or (decoding == "auto" and self.device == "cpu"):
            return None
        if self._decoder is None or self._decoder[0] != self.settings:
            from .scheduler import ContinuousDecoder
            from .support import why_unsupported

            # As `generate` does it: what our config leaves open is the base's.
            ours = greedy_arguments(self._output_rules(), self.settings, self.device)
            config, _ = self.model._prepare_generation_config(ours["generation_config"])
            self.refusal = why_unsupported(self.model, config)
            decoder = None
            if not self.refusal:
                slots = self.settings.batch_size
                decoder = ContinuousDecoder(
                    self.model,
                    self.tokenizer,
                    config,
                    slots=max(slots, AUTO_SLOTS) if decoding == "auto" else slots,
                    longest=self.settings.max_source_tokens,
                )
            self._decoder = self.settings, decoder
        return self._decoder[1]

    def losses(
        self, documents: Sequence[Document], references: Sequence[Sequence[str]]
    ) -> list[Loss]:
        """Held-out loss of each document's references: mean negative log-likelihood a token, in nats.

        Of a reference as the model should write it, end-of-text included, given the prompt that the
        document makes (cut to fit, under map_reduce too: as in training). A document with several
        references has the mean of theirs, each counting the same however long it is. A reference is
        never cut: where prompt and reference exceed the context together, more is cut from the
        document (`cut_tokens`). Raises ValueError when even the bare prompt leaves it no room.
        """
        loss = ReferenceLoss(self.model, self.tokenizer, self.settings, self.device)
        return loss.of(documents, references)

    def stream(self, document: Document) -> Iterator[str]:
        """One document's summary in pieces, as it is written; joined, what `summarize_batch` gives.

        It is written by `generate`: where batches are decoded continuously and in 16 bits, a tie
        between two tokens may be broken otherwise. Closing the iterator ends the generation.
        """

        def write(tokens: TokenQueue, cancelled: threading.Event) -> None:
            self._write_into(document, tokens, cancelled)

        return stream_text(write, self._output_rules())

    def _output_rules(self) -> OutputRules:
        stop = (*self.settings.stop, *self.end_texts)
        strip = self.settings.reasoning == "strip"
        return OutputRules(self.tokenizer, self.end_ids, stop, strip)

    def _prompt_tokens(self, document: Document) -> int:
        if self.settings.summarize == "map_reduce":
            return full_length(self.tokenizer, document, self.settings)
        return len(encode_and_count(self.tokenizer, document, self.settings)[0])

    def _condense(self, documents: Sequence[Document]) -> Sequence[tuple[Document, int]]:
        """For each document a text for one prompt, and from how many parts it was made."""
        if self.settings.summarize != "map_reduce":
            return [(document, 1) for document in documents]
        texts = [document for document in documents if isinstance(document, str)]
        assert len(texts) == len(documents)  # the recipe refuses map_reduce of anything else
        return condense(
            texts,
            self.tokenizer,
            self.settings,
            lambda texts: [summary.text for summary in self.summarize(texts)],
        )

    def _completed(
        self,
        documents: Sequence[Document],
        condensed: Sequence[tuple[Document, int]],
        written: list[Summary],
    ) -> list[Summary]:
        """The summaries of the condensed texts, with the figures of the documents themselves."""
        summaries = []
        for document, (text, parts), written_summary in zip(
            documents, condensed, written, strict=True
        ):
            cut_tokens = encode_and_count(self.tokenizer, text, self.settings)[1]
            summary = replace(written_summary, cut_tokens=cut_tokens, parts=parts)
            if parts > 1:
                summary = replace(summary, prompt_tokens=self._prompt_tokens(document))
                if not text:  # no part had a summary, so there is nothing to summarize
                    summary = replace(summary, text="", finished=True, output_tokens=0)
            summaries.append(summary)
        return summaries

    def _write_batch(self, documents: Sequence[Document], batch: int) -> list[Summary]:
        """Summaries of one batch, each from one prompt, left-padded to the longest."""
        import torch

        prompts = [encode(self.tokenizer, text, self.settings) for text in documents]
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device
        )
        rules = self._output_rules()
        arguments = greedy_arguments(rules, self.settings, self.device)
        with torch.inference_mode():
            rows = self.model.generate(input_ids=ids, attention_mask=mask, **arguments)
        return [
            rules.summary(row[width:].tolist(), len(prompt), batch)
            for row, prompt in zip(rows, prompts, strict=True)
        ]

    def _write_into(
        self, document: Document, tokens: TokenQueue, cancelled: threading.Event
    ) -> None:
        """Put each new token into the queue, then None, also after an error."""
        import torch

        try:
            if isinstance(document, str):
                [(document, parts)] = self._condense([document])
                if parts > 1 and not document:  # as in `_completed`
                    return
            prompt = torch.tensor(
                [encode(self.tokenizer, document, self.settings)], device=self.device
            )
            with torch.inference_mode():
                self.model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    streamer=TokenStreamer(tokens),
                    stopping_criteria=stop_when(cancelled),
                    **greedy_arguments(self._output_rules(), self.settings, self.device),
                )
        finally:
            tokens.put(None)
