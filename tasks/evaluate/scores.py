"""From outputs to scores: pure functions of canonical rows and a model's outputs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal

from tasks.contracts.documents import plain_text
from tasks.contracts.errors import EvaluationError
from tasks.contracts.metrics import LOSS
from tasks.contracts.records import ROUGE_NAMES, Output, Prediction, Row, Scores
from tasks.contracts.words import kind_of, words
from tasks.evaluate.lead3 import lead3
from tasks.evaluate.rouge.scoring import score_pairs
from tasks.evaluate.sentences import one_a_line


@dataclass(frozen=True)
class Measures:
    """Means and guardrail figures of a set of predictions."""

    rows: int
    means: dict[str, float]  # ROUGE F1 by name, and the loss where it was computed
    finished_share: float
    empty_share: float
    length_ratio: float  # output words over first references' words, both summed over all rows


@dataclass(frozen=True)
class Scoring:
    """What ROUGE counts: evaluation.words and evaluation.references of the recipe."""

    words: Literal["auto", "latin", "unicode", "characters"] = "auto"
    references: Literal["best", "mean", "first"] = "best"


DEFAULT_SCORING = Scoring()


def score_texts(
    rows: Sequence[Row],
    outputs: Sequence[Output],
    losses: Sequence[float] | None = None,
    scoring: Scoring = DEFAULT_SCORING,
) -> list[Prediction]:
    """One prediction a row, with ROUGE F1: stemmed where words are English, rougeLsum by sentences.

    `losses`: each row's held-out loss in nats a token, if it was computed. Raises EvaluationError
    when there are no rows, a row has no output or no reference, no reference holds a word, or a loss
    is not finite.
    """
    if not rows:
        raise EvaluationError("the evaluation set is empty; a model cannot be judged on no rows")
    if len(rows) != len(outputs):
        raise EvaluationError(f"{len(rows)} evaluation rows, but {len(outputs)} outputs")
    if unreferenced := [row.id for row in rows if not row.references]:
        raise EvaluationError(
            f"evaluation rows without a reference: {', '.join(unreferenced[:10])}; add one or remove them"
        )
    scores = score_pairs(
        [one_a_line(output.text) for output in outputs],
        [[one_a_line(reference) for reference in row.references] for row in rows],
        split=_split(rows, scoring),
        several=scoring.references,
    )
    if losses is not None:
        _check_losses(rows, losses)
        scores = [s | {LOSS: loss} for s, loss in zip(scores, losses, strict=True)]
    return [
        Prediction(**vars(row), **vars(output), scores=score)
        for row, output, score in zip(rows, outputs, scores, strict=True)
    ]


def _split(rows: Sequence[Row], scoring: Scoring) -> Callable[[str], list[str]]:
    """What finds the words of these rows. Raises EvaluationError when no reference holds one."""
    references = [reference for row in rows for reference in row.references]
    kind = kind_of(references) if scoring.words == "auto" else scoring.words
    if not any(words(reference, kind) for reference in references):
        raise EvaluationError(
            f"no reference of the {len(rows)} evaluation rows holds a word as evaluation.words: {kind} "
            "counts them, so every score would be 0; set evaluation.words: auto, or correct the references"
        )
    return partial(words, kind=kind)


def _check_losses(rows: Sequence[Row], losses: Sequence[float]) -> None:
    if len(rows) != len(losses):
        raise EvaluationError(f"{len(rows)} evaluation rows, but {len(losses)} losses")
    ids = [row.id for row, loss in zip(rows, losses, strict=True) if not math.isfinite(loss)]
    if ids:
        raise EvaluationError(
            f"the loss of {len(ids)} evaluation rows is not a finite number, such as row {ids[0]!r}: the "
            "model gives a reference zero probability, or its numbers overflow; retrain it"
        )


def lead3_predictions(rows: Sequence[Row], scoring: Scoring = DEFAULT_SCORING) -> list[Prediction]:
    """The lead-3 baseline's predictions. No model wrote them: token counts and batch are 0.

    It has no loss either: it gives no text a probability.
    """
    return score_texts(
        rows,
        [Output(lead3(plain_text(row.document)), True, 0, 0, 0) for row in rows],
        scoring=scoring,
    )


def measures(predictions: Sequence[Prediction]) -> Measures:
    """Means and guardrail figures. Raises EvaluationError when there is nothing to measure."""
    if not predictions:
        raise EvaluationError("there are no predictions to measure")
    reference_words = sum(len(words(p.references[0])) for p in predictions)
    if not reference_words:
        raise EvaluationError("the evaluation rows' references hold no words")
    names = (*ROUGE_NAMES, LOSS) if any(LOSS in p.scores for p in predictions) else ROUGE_NAMES
    return Measures(
        rows=len(predictions),
        means={name: fmean(p.scores[name] for p in predictions) for name in names},
        finished_share=fmean(p.finished for p in predictions),
        empty_share=fmean(not p.text.strip() for p in predictions),
        length_ratio=sum(len(words(p.text)) for p in predictions) / reference_words,
    )


def scores_of(
    predictions: Sequence[Prediction],
    model_digest: str,
    evaluation_digest: str,
    uri: str,
    seconds: float = 0.0,
) -> Scores:
    """The record that the gate reads; `uri`: where the predictions table is stored."""
    return Scores(
        model_digest=model_digest,
        evaluation_digest=evaluation_digest,
        uri=uri,
        seconds=seconds,
        **vars(measures(predictions)),
    )


def batch_plan(predictions: Sequence[Prediction]) -> list[list[int]]:
    """The batches in which these were generated, as row indices in the order of their padding.

    On a GPU an output can depend on its batch; generating these batches again, in this order, gives the same
    outputs. The predictions table holds what is needed: the rows' order, and each row's batch and prompt
    length, by which a batch is sorted (longest first, then row order).
    """
    batches: dict[int, list[int]] = defaultdict(list)
    for i, prediction in enumerate(predictions):
        batches[prediction.batch].append(i)
    return [
        sorted(batches[number], key=lambda i: (-predictions[i].prompt_tokens, i))
        for number in sorted(batches)
    ]
