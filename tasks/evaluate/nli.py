"""NLI: how well a document supports an output, by a classifier of natural language inference.

SummaC-ZS (Laban et al. 2022, TACL): the chance that a sentence of the document entails one of the output, for
all pairs; the most over the document's sentences, and the mean over the output's. The library summac wants
huggingface-hub <= 0.17, takes its models and nltk's sentences from the network, and cuts at 500 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.evaluate.metric_model import MetricModel, batches, entailment, load
from tasks.evaluate.sentences import one_a_line

ROWS = 16  # whose pairs are sorted by length together
Told = Callable[[int], None]


def scores(
    folder: Path, documents: Sequence[str], outputs: Sequence[str], done: Told = lambda _: None
) -> tuple[list[float], int]:
    """For each output a number from 0 to 1, and how many sentences of documents were split.

    Of outputs none are counted: of rows that decide only the verdict is told. `done`: rows so far.
    An output without a letter or digit scores 0: its document supports nothing of it. Raises
    EvaluationError as `load` and `entailment`.
    """
    model = load(folder, "AutoModelForSequenceClassification")
    label = entailment(dict(model.model.config.id2label))
    split_at = model.room(pair=True) // 2
    found: list[float] = []
    split = 0
    for start in range(0, len(outputs), ROWS):
        rows = [
            [_sentences(model, text, split_at) for text in pair]
            for pair in zip(
                documents[start : start + ROWS], outputs[start : start + ROWS], strict=True
            )
        ]
        split += sum(more for (_, more), _ in rows)
        found += _of_rows(model, label, [(row[0][0], row[1][0]) for row in rows])
        done(len(found))
    return found, split


def _sentences(model: MetricModel, text: str, most: int) -> tuple[list[str], int]:
    """A text's sentences, those of more than `most` tokens in pieces; and how many those were."""
    whole = [line for line in one_a_line(text).splitlines() if any(c.isalnum() for c in line)]
    long = {n for n, count in enumerate(model.counts(whole)) if count > most}
    parts = [model.pieces(one, most) if n in long else [one] for n, one in enumerate(whole)]
    return [piece for part in parts for piece in part], len(long)


def _of_rows(
    model: MetricModel, label: int, rows: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> list[float]:
    pairs = [
        (row, of_document, n)
        for row, (document, output) in enumerate(rows)
        for n in range(len(output))
        for of_document in document
    ]
    best = [[0.0] * len(output) for _, output in rows]
    premises = [premise for _, premise, _ in pairs]
    hypotheses = [rows[row][1][n] for row, _, n in pairs]
    known = dict(zip(unique := sorted({*premises, *hypotheses}), model.counts(unique), strict=True))
    extra = model.limit - model.room(pair=True)
    lengths = [known[a] + known[b] + extra for a, b in zip(premises, hypotheses, strict=True)]
    for batch in batches(lengths):
        chances = _entailed(
            model, label, [premises[i] for i in batch], [hypotheses[i] for i in batch]
        )
        for i, chance in zip(batch, chances, strict=True):
            row, _, n = pairs[i]
            best[row][n] = max(best[row][n], chance)
    return [math.fsum(row) / len(row) if row else 0.0 for row in best]


def _entailed(
    model: MetricModel, label: int, premises: Sequence[str], hypotheses: Sequence[str]
) -> list[float]:
    import torch

    inputs = model.read(premises, hypotheses)
    del inputs["special_tokens_mask"]
    with torch.inference_mode():
        logits = model.model(**inputs).logits
    chances: list[float] = logits.double().softmax(dim=-1)[:, label].cpu().tolist()
    return chances
