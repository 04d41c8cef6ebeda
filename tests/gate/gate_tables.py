"""Predictions tables and score records made up of given scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from tasks.contracts.recipe import Gate
from tasks.contracts.records import ROUGE_NAMES, Decision, Prediction, Scores, ShownDecision
from tasks.contracts.slice_labels import Labels
from tasks.gate.decide import decide
from tasks.gate.earlier_looks import EarlierLook
from tasks.gate.shown import shown

QUICK = Gate(bootstrap_samples=1000)


def table(
    scores: ArrayLike,
    *,
    sources: Sequence[str] | None = None,
    unfinished: int = 0,
    empty: int = 0,
    losses: Sequence[float] | None = None,
    texts: Sequence[str] | None = None,
) -> list[Prediction]:
    """Rows with all four ROUGE equal (scores: rows), or each its own (rows by ROUGE_NAMES).

    `losses`: a loss a row, in nats a token. `texts`: the outputs.
    """
    values = np.asarray(scores, dtype=float)
    if values.ndim == 1:
        values = np.tile(values[:, None], (1, len(ROUGE_NAMES)))
    return [
        Prediction(
            id=f"row{i:05}",
            source=sources[i] if sources else f"doc{i}",
            document=f"what was written in {sources[i] if sources else i}",
            references=(f"reference {i}",),
            text="" if i < empty else texts[i] if texts else f"summary {i}",
            finished=i >= unfinished,
            prompt_tokens=50,
            output_tokens=10,
            batch=i // 8,
            scores={n: float(v) for n, v in zip(ROUGE_NAMES, row, strict=True)}
            | ({} if losses is None else {"loss": float(losses[i])}),
        )
        for i, row in enumerate(values)
    ]


def record(
    rows: Sequence[Prediction],
    model: str,
    *,
    seal: str = "seal",
    length: float = 1.0,
    tokenizer: str = "",
) -> Scores:
    """The record that evaluation would write of such a table."""
    count = max(len(rows), 1)
    names = (*ROUGE_NAMES, "loss") if any("loss" in r.scores for r in rows) else ROUGE_NAMES
    return Scores(
        model_digest=model,
        evaluation_digest=seal,
        uri="runs:/x/predictions.json",
        rows=len(rows),
        means={n: math.fsum(r.scores.get(n, 0.0) for r in rows) / count for n in names},
        finished_share=sum(r.finished for r in rows) / count,
        empty_share=sum(not r.text for r in rows) / count,
        length_ratio=length,
        tokenizer_digest=tokenizer,
    )


def judged(
    challenger: Sequence[Prediction],
    opponent: Sequence[Prediction],
    gate: Gate = QUICK,
    *,
    looks: int = 1,
    earlier: Sequence[EarlierLook] = (),
    kind: str = "champion",
    base: Sequence[Prediction] | None = None,
    lead3: Sequence[Prediction] | None = None,
    length: float = 1.0,
    digests: tuple[str, str] = ("new", "old"),
    tokenizers: tuple[str, str] = ("", ""),
    sealed: bool = False,
    labels: Labels | None = None,
) -> Decision:
    """`decide` with records that fit the tables."""
    return decide(
        challenger,
        opponent,
        gate,
        opponent_kind="champion" if kind == "champion" else "base",
        opponent_version=2 if kind == "champion" else None,
        challenger_scores=record(challenger, digests[0], length=length, tokenizer=tokenizers[0]),
        opponent_scores=record(opponent, digests[1], tokenizer=tokenizers[1]),
        base=base,
        lead3=lead3,
        looks=looks,
        earlier=earlier,
        labels=labels,
        sealed=sealed,
    )


def in_the_open(decision: Decision) -> ShownDecision:
    """A decision that is shown whole, as under open feedback."""
    return shown(decision, None, Gate(feedback="open"), evaluation_rows=decision.rows)


def two_models(
    seed: int, rows: int = 200, gain: float = 0.0, noise: float = 0.05
) -> tuple[list[Prediction], list[Prediction]]:
    """A challenger and an opponent whose expected scores differ by `gain`."""
    draw = np.random.default_rng(seed)
    quality = draw.beta(4, 8, (rows, 1)) * 0.6 + 0.15
    ours = quality + gain + noise * draw.standard_normal((rows, 4))
    theirs = quality + noise * draw.standard_normal((rows, 4))
    return table(np.clip(ours, 0, 1)), table(np.clip(theirs, 0, 1))
