"""What a reader of the verdict should know; it does not affect the verdict."""

from __future__ import annotations

from tasks.contracts.formatting import confidence, short_score
from tasks.contracts.metrics import sign
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Verdict
from tasks.gate.measure import Measured, Table
from tasks.gate.output_faults import copies

COPIED_SHARE = 0.25  # of an opponent's outputs, above which its score says little
UNFINISHED_SHARE = 0.5  # above it most of a promoted model's summaries stop in mid-sentence


def notes(
    verdict: Verdict,
    measured: Measured,
    challenger: Table,
    opponent: Table,
    opponent_title: str,
    gate: Gate,
    looks: int,
    earlier: int,
) -> tuple[str, ...]:
    """Shown beside the reasons: baselines that beat a promoted model, cut outputs, many looks.

    `earlier`: earlier challengers whose scores were at hand.
    """
    lines = []
    if verdict == "PROMOTE":
        lines += _beaten_by(measured, gate)
        lines += _cut_off(challenger)
    lines += copying(opponent, opponent_title)
    if looks > 1:
        lines.append(about_looks(measured.alpha, gate, looks, earlier))
    return tuple(lines)


def _beaten_by(measured: Measured, gate: Gate) -> list[str]:
    metric = measured.metrics[gate.metric]
    baselines = {"lead-3 (a document's first three sentences)": metric.lead3}
    baselines["the untuned base"] = metric.base
    better = sign(gate.metric)
    return [
        f"the promoted model's {gate.metric} of {short_score(metric.challenger)} is "
        f"{'below' if better > 0 else 'above'} {short_score(value)} of {title}"
        for title, value in baselines.items()
        if value is not None and better * metric.challenger < better * value
    ]


def _cut_off(challenger: Table) -> list[str]:
    count = sum(not row.finished for row in challenger)
    if count <= UNFINISHED_SHARE * len(challenger):
        return []
    return [
        f"{count} of the promoted model's {len(challenger)} outputs were cut off at the token "
        "limit; raise evaluation.max_new_tokens or train longer"
    ]


def copying(opponent: Table, title: str) -> list[str]:
    """ROUGE rewards quotations, so a better summarizer may look worse than an opponent that quotes."""
    count = sum(map(copies, opponent))
    if count <= COPIED_SHARE * len(opponent):
        return []
    return [
        f"{count} of the {title}'s {len(opponent)} outputs copy their document, where no reference does: "
        "ROUGE rates quotations too high, so read the examples"
    ]


def about_looks(alpha: float, gate: Gate, looks: int, earlier: int) -> str:
    """How many were judged on this set, and what the bound makes of it."""
    judged = f"challenger {looks} judged on this evaluation set"
    if gate.looks == "correct":
        gone = looks - 1 - earlier
        how = (
            f"; the scores of {gone} earlier challengers are not at hand (deleted, or of other rows), so "
            "theirs count in full"
            if gone > 0
            else ""
        )
        return f"{judged}, so its bound is held to {confidence(alpha)}{how}; fresh data start the count again"
    lucky = 1 - (1 - gate.alpha) ** looks
    return (
        f"{judged}, and the bound is not corrected for it: of so many challengers no better than "
        f"their opponent, one or more would pass by luck with probability {lucky:.2f}"
    )
