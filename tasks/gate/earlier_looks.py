"""What earlier challengers of one champion have spent of the level, so that none of it is spent twice.

Two challengers are compared with the same champion on the same documents, so their gains move together
(by one half, where the three models are alike), and by what luck the one passes the other may well pass too.
Of the resamples of the documents, those in which an earlier challenger's mean is beyond its own lower
bound are errors that its look has paid for. A later look needs to pay only for the others: its bound is
read among those (the maximum over all looks at once: Westfall & Young 1993; Romano & Wolf 2005, "Stepwise
Multiple Testing as Formalized Data Snooping"). So the k-th look adds alpha/k^2 to the chance that any of them
errs, as before, and its own bound is read at a level that is never lower.

statsmodels.stats.multitest has corrections for p-values at hand all at once; none for a series of looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.contracts import digest
from tasks.contracts.records import Decision, Prediction
from tasks.gate.pairs import pair


@dataclass(frozen=True)
class EarlierLook:
    """One challenger's gains, and the bound that it was held to.

    `gains`: of the deciding metric, one a row, in order of row ids. `rows`: digest of what was asked.
    """

    challenger: str  # model digest
    opponent: str  # model digest
    metric: str
    looks: int
    low: float
    rows: str
    gains: tuple[float, ...]


@dataclass(frozen=True)
class Spent:
    """Gains of earlier looks (float64, rows by looks) and the lower bound of each (looks)."""

    gains: NDArray[np.float64]
    lows: NDArray[np.float64]

    @classmethod
    def of(cls, earlier: Sequence[EarlierLook]) -> Spent | None:
        """What these looks have spent; None where there are none."""
        if not earlier:
            return None
        gains = np.column_stack([np.array(look.gains, dtype=np.float64) for look in earlier])
        return cls(gains, np.array([look.low for look in earlier]))


def look_of(
    decision: Decision,
    metric: str,
    challenger: Sequence[Prediction],
    opponent: Sequence[Prediction],
) -> EarlierLook:
    """What a later look needs of this one."""
    gains = pair(challenger, opponent, (metric,), near_copies=False).gains[:, 0]
    return EarlierLook(
        challenger=decision.challenger_digest,
        opponent=decision.opponent_digest,
        metric=metric,
        looks=decision.looks,
        low=decision.metrics[metric].low,
        rows=rows_digest(challenger),
        gains=tuple(gains.tolist()),
    )


def usable(
    earlier: Sequence[EarlierLook],
    challenger: Sequence[Prediction],
    challenger_digest: str,
    opponent_digest: str,
    metric: str,
    looks: int,
) -> list[EarlierLook]:
    """Those of other challengers, against the same opponent on the same rows.

    None where this challenger itself was judged at another look: it has had its chance, and a wider
    bound now would be a second one.
    """
    rows = rows_digest(challenger)
    same = [look for look in earlier if (look.opponent, look.rows) == (opponent_digest, rows)]
    own = [look for look in same if (look.challenger, look.metric) == (challenger_digest, metric)]
    if any(look.looks != looks for look in own):
        return []
    return [look for look in same if look not in own and len(look.gains) == len(challenger)]


def rows_digest(rows: Sequence[Prediction]) -> str:
    """A digest of what the rows ask: ids, documents and references, in order of ids."""
    asked = sorted((row.id, row.source, row.document, row.references) for row in rows)
    return digest.of_value(asked)
