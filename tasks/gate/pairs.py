"""Two models' predictions, checked and paired row by row; invalid tables raise and are never scored."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.contracts.documents import Document
from tasks.contracts.errors import EvaluationError, SealBroken
from tasks.contracts.metrics import LOSS, other_tokenizer, sign
from tasks.contracts.records import ROUGE_NAMES, Prediction, Scores
from tasks.gate.clusters import clusters

# Differences are rounded to this grid (2.3e-10): sums of up to two million rows (of losses that differ
# by 8 nats, of a quarter million) are then exact in float64 whatever their order, so every machine
# computes the same decision to the last bit, and the noise of subtraction (0.3 - 0.2 < 0.1) cannot
# break a tie.
RESOLUTION = 2.0**-32
TOLERANCE = 1e-9  # between a mean in a Scores record and the same mean from the table
MAX_LOSS = sys.float_info.max  # any finite number


@dataclass(frozen=True)
class Pairs:
    """Per-row gains of the challenger over its opponent, in order of row ids; positive is better.

    `gains`: float64, rows by metrics, multiples of RESOLUTION. `cluster`: int, rows.
    """

    gains: NDArray[np.float64]
    cluster: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.cluster)

    @property
    def clusters(self) -> int:
        """Number of clusters (distinct documents)."""
        return int(self.cluster.max()) + 1


def check_seal(challenger: Scores, opponent: Scores) -> None:
    """Raise SealBroken unless both were taken with one set, prompt, decoding and metric."""
    if challenger.evaluation_digest != opponent.evaluation_digest:
        raise SealBroken(
            f"the challenger was scored under evaluation digest {challenger.evaluation_digest}, "
            f"its opponent under {opponent.evaluation_digest}: such scores cannot be compared; "
            "score both on one set, with one prompt, the same generation settings and metric"
        )


def check_tokenizer(challenger: Scores, opponent: Scores, opponent_is: str) -> None:
    """Raise SealBroken unless both models have the same tokenizer: needed where a loss decides."""
    digests = challenger.tokenizer_digest, opponent.tokenizer_digest
    if not all(digests):
        title = opponent_is if challenger.tokenizer_digest else "challenger"
        raise SealBroken(
            f"the tokenizer of the {title}'s loss was not recorded; score the {title} again"
        )
    if digests[0] != digests[1]:
        raise SealBroken(other_tokenizer(*digests, f"the {opponent_is}"))


def check_metric_models(challenger: Scores, opponent: Scores, opponent_is: str) -> None:
    """Raise SealBroken unless NLI and BERTScore, where both have one, were computed alike."""
    for name, own in challenger.metric_models.items():
        other = opponent.metric_models.get(name, own)
        if own.key != other.key:
            raise SealBroken(
                f"{name} of the challenger was computed with the model {own.digest[:16]}..., of the "
                f"{opponent_is} with {other.digest[:16]}..., or by other code or on another kind of "
                "processor: such numbers cannot be compared; run again"
            )


def check_table(
    who: str,
    rows: Sequence[Prediction],
    scores: Scores | None = None,
    names: Sequence[str] = ROUGE_NAMES,
) -> None:
    """Raise EvaluationError for a table, or a record of it, that no decision can be made on.

    `names`: the metrics that every row must have.
    """
    if not rows:
        raise EvaluationError(f"{who}: no evaluation rows; nothing can be decided on an empty set")
    problems = []
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            problems.append(f"{who}: two rows have the id {row.id!r}; ids must differ")
        seen.add(row.id)
        problems += [f"{who}, row {row.id!r}: {text}" for text in _bad_scores(row, names)]
    if not problems and scores is not None:
        problems = [
            f"{who}: {text}; score it again" for text in _disagreements(rows, scores, names)
        ]
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise EvaluationError.of([*problems[:10], *more])


def pair(
    challenger: Sequence[Prediction],
    opponent: Sequence[Prediction],
    names: Sequence[str] = ROUGE_NAMES,
    near_copies: bool = True,
) -> Pairs:
    """Pair two checked tables by row id. Raises EvaluationError unless their rows are the same.

    Gains are in the order of `names`. `near_copies`: whether they are one cluster, see `clusters`.
    """
    check_same_rows("opponent", challenger, opponent)
    challenger_rows = sorted(challenger, key=lambda row: row.id)
    opponent_rows = sorted(opponent, key=lambda row: row.id)
    signs = np.array([sign(name) for name in names], dtype=np.float64)
    gains = signs * (_scores(challenger_rows, names) - _scores(opponent_rows, names))
    return Pairs(
        gains=np.round(gains / RESOLUTION) * RESOLUTION,
        cluster=np.array(clusters(challenger_rows, near_copies), dtype=np.int64),
    )


def check_same_rows(
    who: str, challenger: Sequence[Prediction], other: Sequence[Prediction]
) -> None:
    """Raise EvaluationError unless both tables hold the same ids, documents and references."""
    challenger_rows, other_rows = ({row.id: row for row in rows} for rows in (challenger, other))
    if missing := sorted(challenger_rows.keys() ^ other_rows.keys()):
        raise EvaluationError(
            f"the challenger's table has {len(challenger_rows)} rows and the {who}'s "
            f"{len(other_rows)}; "
            f"{len(missing)} ids are in one only, such as {missing[0]!r}; score both on one set"
        )
    for key, row in challenger_rows.items():
        if _question(row) != _question(other_rows[key]):
            raise EvaluationError(
                f"row {key!r} has another source, document or reference in the {who}'s table; "
                "score both on one set"
            )


def mean(rows: Sequence[Prediction], name: str) -> float:
    """A metric's mean over rows, exactly rounded, so independent of their order."""
    return math.fsum(row.scores[name] for row in rows) / len(rows)


def _scores(rows: Sequence[Prediction], names: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[row.scores[name] for name in names] for row in rows], dtype=np.float64)


def _question(row: Prediction) -> tuple[str, Document, tuple[str, ...]]:
    return row.source, row.document, row.references


def _bad_scores(row: Prediction, names: Sequence[str]) -> list[str]:
    problems = [f"no {name}" for name in names if name not in row.scores]
    for name, value in row.scores.items():
        limit, valid = (1 + TOLERANCE, "from 0 to 1")
        if name == LOSS:
            limit, valid = MAX_LOSS, "of 0 or more"
        if not isinstance(value, (int, float)) or not -TOLERANCE <= value <= limit:  # or NaN
            problems.append(f"{name} is {value!r}, not a number {valid}")
    return problems


def _disagreements(rows: Sequence[Prediction], scores: Scores, names: Sequence[str]) -> list[str]:
    if scores.rows != len(rows):
        return [f"its record counts {scores.rows} rows, its table {len(rows)}"]
    if scores.length_ratio is None or not 0 <= scores.length_ratio < math.inf:  # or NaN
        return [f"its record gives the length ratio {scores.length_ratio}"]
    finished = math.nan if scores.finished_share is None else scores.finished_share
    shares = {"finished share": (finished, sum(r.finished for r in rows) / len(rows))}
    compared = shares | {n: (scores.means.get(n, math.nan), mean(rows, n)) for n in names}
    return [
        f"its record gives {name} {stored}, its table {counted}"
        for name, (stored, counted) in compared.items()
        if not abs(stored - counted) <= TOLERANCE
    ]
