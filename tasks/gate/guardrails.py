"""The conditions besides the primary metric that a promotion must not break.

All follow one rule: a guardrail vetoes a measured loss, and asks for no proof that there is none. One
that is broken as measured prevents a promotion; the verdict is REJECT where noise cannot explain it, and
INCONCLUSIVE where it can. Asking for proof ("the lower bound is within the margin") costs three of four
true gains in rougeL alone at 500 rows (0.20 promoted, 0.72 by this rule), and this rule still stops a
loss of 0.02 in rouge2.

Each guardrail is the mean over rows of a slack, which is below zero where it is broken; the bounds of
that mean come from the same resampling of documents as those of the gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.contracts.formatting import short_gain, short_score
from tasks.contracts.metrics import LOSS, largest_drop
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Guardrail, MetricResult, Prediction
from tasks.contracts.words import words
from tasks.gate.bootstrap import resample
from tasks.gate.invented import invented
from tasks.gate.measure import Measured, Table
from tasks.gate.output_faults import copies, empty, repeats, same
from tasks.gate.pairs import RESOLUTION, Pairs

INVENTED = "invented_rise"
INVENTED_FAULT = "hold a number or name that neither document nor reference has"
NOISE = ", though noise could explain it"
MUCH = 0.3  # ROUGE that a document loses: about three standard deviations between equal models


@dataclass(frozen=True)
class Finding:
    """A guardrail; if it does not hold, why, and whether noise alone could be the reason."""

    guardrail: Guardrail
    why: str
    noise: bool = False


@dataclass(frozen=True)
class _Condition:
    """A guardrail as measured. `slack`: float64, a number a row, whose mean is below zero if broken."""

    guardrail: Guardrail
    why: str
    slack: NDArray[np.float64]


def guardrails(
    challenger: Table, opponent: Table, measured: Measured, gate: Gate, schema: int
) -> list[Finding]:
    """All guardrails, those that hold too, in a fixed order. `measured`: of these two tables.

    `schema`: of the rules (decide.SCHEMA); those of 2 knew no invented numbers and names, nor
    documents that lose much.
    """
    metrics, cluster = measured.metrics, measured.cluster
    ours, theirs = (sorted(rows, key=lambda row: row.id) for rows in (challenger, opponent))
    conditions = [
        _rise("unfinished_rise", _flags(ours, _unfinished), _flags(theirs, _unfinished),
              gate.max_unfinished_rise, "were cut off at the token limit"),
        _share("empty_share", _flags(ours, empty), gate.max_empty_share,
               "hold no letter and no digit"),
        _share("same_share", np.array(same(ours, cluster.tolist())), gate.max_same_share,
               "say what outputs for other documents say, where the references differ"),
        _rise("repeating_rise", _flags(ours, repeats), _flags(theirs, repeats),
              gate.max_repeating_rise, "repeat themselves"),
        _rise("copied_rise", _flags(ours, copies), _flags(theirs, copies),
              gate.max_copied_rise, "copy their document, where no reference does"),
        *(_invented(ours, theirs, gate) if schema > 2 else ()),
        _length(ours, gate),
        *([_lost(ours, theirs, gate)] if schema > 2 else []),
    ]  # fmt: skip
    return [
        *(
            _other_metric(name, metrics[name], margin)
            for name in metrics
            if name != gate.metric and (margin := largest_drop(gate, name)) is not None
        ),
        *_findings(conditions, cluster, gate),
    ]


def _other_metric(name: str, metric: MetricResult, margin: float) -> Finding:
    held = metric.gain >= -margin - RESOLUTION
    noise = not held and metric.high >= -margin
    why = f"{name} changed by {short_gain(metric.gain)}, a loss over the margin of {margin:g}"
    if noise:
        why += f", though noise could explain it: upper bound {short_score(metric.high)}"
    return Finding(Guardrail(name, metric.gain, f">= {-margin + 0.0:g}", held), why, noise)


def _findings(
    conditions: Sequence[_Condition], cluster: NDArray[np.int64], gate: Gate
) -> list[Finding]:
    broken = [condition for condition in conditions if not condition.guardrail.held]
    noise = dict(zip(map(id, broken), _noise(broken, cluster, gate), strict=True))
    return [_finding(condition, noise.get(id(condition), False)) for condition in conditions]


def _finding(condition: _Condition, noise: bool) -> Finding:
    why = condition.why + (NOISE if noise else "")
    return Finding(condition.guardrail, why, noise)


def _noise(broken: Sequence[_Condition], cluster: NDArray[np.int64], gate: Gate) -> list[bool]:
    """Of each broken guardrail, whether its mean slack could be zero or more: its bound at gate.alpha."""
    if not broken:
        return []
    slack = np.column_stack([condition.slack for condition in broken])
    pairs = Pairs(np.round(slack / RESOLUTION) * RESOLUTION, cluster)
    resampled = resample(pairs, gate.bootstrap_samples, gate.alpha, gate.seed)
    return [resampled.bounds(column, gate.alpha)[1] >= 0 for column in range(len(broken))]


def _flags(rows: Table, has_fault: Callable[[Prediction], bool]) -> NDArray[np.bool_]:
    return np.array([has_fault(row) for row in rows])


def _unfinished(row: Prediction) -> bool:
    return not row.finished


def _share(name: str, faulty: NDArray[np.bool_], bound: float, fault: str) -> _Condition:
    """Absolute: such an output is useless, even if the opponent writes as many."""
    share = int(faulty.sum()) / len(faulty)
    why = f"{faulty.sum()} of {len(faulty)} outputs {fault}: {share:.3f}, over {bound:g}"
    guardrail = Guardrail(name, share, f"<= {bound:g}", share <= bound)
    return _Condition(guardrail, why, bound - faulty.astype(np.float64))


def _rise(
    name: str,
    faulty: NDArray[np.bool_],
    opponent_faulty: NDArray[np.bool_],
    bound: float,
    fault: str,
) -> _Condition:
    """A rise over the opponent's share: an untuned base, which rarely stops, can be one too."""
    rise = (int(faulty.sum()) - int(opponent_faulty.sum())) / len(faulty)
    why = (
        f"{faulty.sum()} of {len(faulty)} outputs {fault}, the opponent's {opponent_faulty.sum()}: "
        f"a rise of {rise:.3f}, over {bound:g}"
    )
    guardrail = Guardrail(name, rise, f"<= {bound:g}", rise <= bound)
    slack = bound - (faulty.astype(np.float64) - opponent_faulty.astype(np.float64))
    return _Condition(guardrail, why, slack)


def _invented(ours: Table, theirs: Table, gate: Gate) -> list[_Condition]:
    ours_invent, theirs_invent = map(np.array, invented(ours, theirs))
    bound = gate.max_invented_rise
    return [_rise(INVENTED, ours_invent, theirs_invent, bound, INVENTED_FAULT)]


def _lost(ours: Table, theirs: Table, gate: Gate) -> _Condition:
    """Documents that lose much, less those that gain as much: a mean hides a few, and rows show few.

    One alone is no share.
    """
    metric = "rougeL" if gate.metric == LOSS else gate.metric
    pairs = zip(ours, theirs, strict=True)
    gains = np.array([own.scores[metric] - other.scores[metric] for own, other in pairs])
    lost, won = gains < -MUCH, gains > MUCH
    net = int(lost.sum()) - int(won.sum())
    share, bound = net / len(gains), gate.max_lost_share
    why = (
        f"{lost.sum()} of {len(gains)} outputs lose more than {MUCH:g} in {metric} and {won.sum()} gain as "
        f"much: {share:.3f} more, over {bound:g}"
    )
    held = share <= bound or net <= 1
    slack = bound - (lost.astype(np.float64) - won.astype(np.float64))
    return _Condition(Guardrail("lost_share", share, f"<= {bound:g}", held), why, slack)


def _length(ours: Table, gate: Gate) -> _Condition:
    """Absolute: the challenger must be within the bounds even if its opponent is not."""
    low, high = gate.length_ratio
    written = np.array([len(words(row.text)) for row in ours], dtype=np.float64)
    reference = np.array([len(words(row.references[0])) for row in ours], dtype=np.float64)
    total = reference.sum()
    ratio = float(written.sum() / total) if total else math.inf
    why = f"outputs are {ratio:.2f} times as long as references, outside {low:g} to {high:g}"
    guardrail = Guardrail("length_ratio", ratio, f"{low:g} to {high:g}", low <= ratio <= high)
    slack = written - low * reference if ratio < low else high * reference - written
    return _Condition(guardrail, why, slack)
