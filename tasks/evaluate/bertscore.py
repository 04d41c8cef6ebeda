"""BERTScore: how alike an output and a reference are, by the vectors that an encoder gives their tokens.

Zhang et al. 2020 (ICLR), without idf weights and rescaling: each token is matched with the most similar one
of the other text, by cosine. The library bert_score (which evaluate's metric calls) cuts texts at the model's
length without telling, loads pickled weights, and its tokenizer calls are gone from transformers 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from tasks.contracts.errors import EvaluationError
from tasks.evaluate.metric_model import MetricModel, batches, load

ROWS = 16  # whose vectors are in memory at once
Told = Callable[[int], None]


def scores(
    folder: Path,
    outputs: Sequence[str],
    references: Sequence[Sequence[str]],
    layer: int | None = None,
    several: Literal["best", "mean", "first"] = "best",
    done: Told = lambda _: None,
) -> tuple[list[float], int]:
    """For each output its F1 with its references, and how many references were split. `done`: rows so far.

    Of outputs none are counted: of rows that decide only the verdict is told.
    `layer`: counted from 1; None: three quarters of them. `several`: of several references the best F1, the
    mean, or the first's. A text without tokens scores 0. Raises EvaluationError as `load`, and for a layer
    that the model has not.
    """
    # Above the last layer, some encoders have weights (a pooler) that are not needed.
    # add_prefix_space: as bert_score, for tokenizers to which a text's first word is another without.
    model = load(folder, "AutoModel", may_lack="pooler", add_prefix_space=True)
    layer = _layer(model, layer)
    taken = [list(one[:1] if several == "first" else one) for one in references]
    found: list[float] = []
    split = 0
    for start in range(0, len(outputs), ROWS):
        rows = list(zip(outputs[start : start + ROWS], taken[start : start + ROWS], strict=True))
        texts = sorted({text for output, refs in rows for text in (output, *refs)})
        vectors, long = _vectors(model, texts, layer)
        split += len(long.intersection(reference for _, refs in rows for reference in refs))
        for output, refs in rows:
            each = [f1(vectors[output], vectors[reference]) for reference in refs]
            found.append(math.fsum(each) / len(each) if several == "mean" else max(each))
        done(len(found))
    return found, split


def _layer(model: MetricModel, layer: int | None) -> int:
    config = model.model.config
    if getattr(config, "is_encoder_decoder", False):
        raise EvaluationError(
            "gate.bertscore_model is an encoder with a decoder; choose an encoder alone"
        )
    layers = int(config.num_hidden_layers)
    if layer is not None and layer > layers:
        raise EvaluationError(f"gate.bertscore_layer is {layer}, and the model has {layers} layers")
    return layer or max(1, round(0.75 * layers))


def f1(candidate: tuple[Any, Any], reference: tuple[Any, Any]) -> float:
    """F1 of two texts, each as vectors of length 1 (tokens, size) and weights (tokens): 0 of special tokens.

    As in bert_score, special tokens may be matched, and count nothing themselves.
    """
    (ours, our_weights), (theirs, their_weights) = candidate, reference
    if not our_weights.sum() or not their_weights.sum():
        return 0.0
    alike = ours @ theirs.T
    precision = float((alike.max(dim=1).values * our_weights).sum() / our_weights.sum())
    recall = float((alike.max(dim=0).values * their_weights).sum() / their_weights.sum())
    if min(precision, recall) <= 0:  # the harmonic mean of a negative number means nothing
        return 0.0
    return min(1.0, 2 * precision * recall / (precision + recall))


def _vectors(
    model: MetricModel, texts: Sequence[str], layer: int
) -> tuple[dict[str, tuple[Any, Any]], set[str]]:
    """Each text's vectors and weights, in float64; and the texts that are longer than the model reads.

    Such a text is read in pieces, whose vectors stand one after the other.
    """
    import torch

    room = model.room(pair=False)
    pieces = [model.pieces(text.strip(), room) for text in texts]
    flat = [(n, piece) for n, parts in enumerate(pieces) for piece in parts]
    lengths = [count + model.limit - room for count in model.counts([piece for _, piece in flat])]
    read: dict[int, tuple[Any, Any]] = {}
    for batch in batches(lengths):
        inputs = model.read([flat[i][1] for i in batch])
        special = inputs.pop("special_tokens_mask").bool()
        with torch.inference_mode():
            hidden = model.model(**inputs, output_hidden_states=True).hidden_states[layer]
        real = inputs["attention_mask"].bool()
        for place, i in enumerate(batch):
            kept = real[place]
            vectors = torch.nn.functional.normalize(hidden[place][kept].double(), dim=-1)
            read[i] = vectors, (~special[place][kept]).double()
    by_text: list[list[tuple[Any, Any]]] = [[] for _ in texts]
    for i, (n, _) in enumerate(flat):
        by_text[n].append(read[i])
    found = {
        text: (torch.cat([v for v, _ in parts]), torch.cat([w for _, w in parts]))
        for text, parts in zip(texts, by_text, strict=True)
    }
    return found, {text for text, parts in zip(texts, pieces, strict=True) if len(parts) > 1}
