"""The guardrails of decisions of schema 1, made before 2026-11-28: kept to recompute those.

Shares of rows and the length ratio are compared as counted, without bounds: they do not estimate a
small difference, they find a model that is broken (rambles, stops at once, writes nothing).
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.contracts.formatting import short_gain, short_score
from tasks.contracts.metrics import LOSS
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Guardrail, MetricResult, Prediction, Scores
from tasks.gate.guardrails import Finding
from tasks.gate.pairs import RESOLUTION


def guardrails(
    challenger: Sequence[Prediction],
    opponent: Sequence[Prediction],
    challenger_scores: Scores,
    metrics: dict[str, MetricResult],
    gate: Gate,
) -> list[Finding]:
    """All guardrails, those that hold too, in a fixed order."""
    others = [name for name in metrics if name != gate.metric]
    check_rouge = _rouge_beside_loss if gate.metric == LOSS else _other_rouge
    return [
        *(check_rouge(name, metrics[name], gate) for name in others),
        _unfinished(challenger, opponent, gate),
        _empty(challenger, gate),
        _length(challenger_scores.length_ratio, gate),
    ]


def _other_rouge(name: str, metric: MetricResult, gate: Gate) -> Finding:
    """Held when the loss is shown to be within the margin.

    A measured loss over the margin is a broken guardrail; a measured gain or small loss whose
    lower bound crosses the margin is one that noise could explain.
    """
    margin = gate.guardrail_margin
    held = metric.low >= -margin - RESOLUTION
    noise = not held and metric.gain >= -margin
    why = f"{name} changed by {short_gain(metric.gain)}, a loss over the margin of {margin:g}"
    if noise:
        why = (
            f"{name} could be worse by more than {margin:g}: it changed by "
            f"{short_gain(metric.gain)} with lower bound {short_score(metric.low)}"
        )
    return Finding(Guardrail(name, metric.low, f">= {-margin + 0.0:g}", held), why, noise)


def _rouge_beside_loss(name: str, metric: MetricResult, gate: Gate) -> Finding:
    """Held when no drop over the margin was measured; a drop that noise could explain is no proof.

    Where the loss decides, ROUGE only has to show no measured drop: proving that it stayed within the
    margin would need more rows than most sets have, as loss and ROUGE move independently.
    """
    margin = gate.guardrail_margin
    held = metric.gain >= -margin - RESOLUTION
    noise = not held and metric.high >= -margin
    why = f"{name} changed by {short_gain(metric.gain)}, a loss over the margin of {margin:g}"
    if noise:
        why += f", though noise could explain it: upper bound {short_score(metric.high)}"
    return Finding(Guardrail(name, metric.gain, f">= {-margin + 0.0:g}", held), why, noise)


def _unfinished(
    challenger: Sequence[Prediction], opponent: Sequence[Prediction], gate: Gate
) -> Finding:
    """A rise over the opponent's share: the untuned base, which rarely stops, can be an opponent too."""
    cut_off, opponent_cut_off = (
        sum(not row.finished for row in rows) for rows in (challenger, opponent)
    )
    rise = (cut_off - opponent_cut_off) / len(challenger)
    bound = gate.max_unfinished_rise
    why = (
        f"{cut_off} of {len(challenger)} outputs were cut off at the token limit, the opponent's "
        f"{opponent_cut_off}: a rise of {rise:.3f}, over {bound:g}"
    )
    return Finding(Guardrail("unfinished_rise", rise, f"<= {bound:g}", rise <= bound), why)


def _empty(challenger: Sequence[Prediction], gate: Gate) -> Finding:
    """Absolute: an empty summary is useless, even if the opponent writes as many."""
    count = sum(not row.text.strip() for row in challenger)
    share, bound = count / len(challenger), gate.max_empty_share
    why = f"{count} of {len(challenger)} outputs are empty: {share:.3f}, over {bound:g}"
    return Finding(Guardrail("empty_share", share, f"<= {bound:g}", share <= bound), why)


def _length(ratio: float | None, gate: Gate) -> Finding:
    """Absolute: the challenger must be within the bounds even if its opponent is not."""
    assert ratio is not None  # check_table
    low, high = gate.length_ratio
    why = f"outputs are {ratio:.2f} times as long as references, outside {low:g} to {high:g}"
    held = low <= ratio <= high
    return Finding(Guardrail("length_ratio", ratio, f"{low:g} to {high:g}", held), why)
