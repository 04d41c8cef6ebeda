"""Numbers and verdicts as people read them."""

from __future__ import annotations

from tasks.records import Decision, Verdict

DONE: dict[Verdict, str] = {
    "PROMOTE": "PROMOTED",
    "REJECT": "REJECTED",
    "INCONCLUSIVE": "INCONCLUSIVE",
}
SAME_MODEL = "same model"


def headline(decision: Decision, name: str, version: int | None, metric: str) -> str:
    """The verdict in a line: `PROMOTED dialogsum v3: rougeL +0.012 [0.004, 0.020]`.

    `version`: the new version, None when there is none; `metric`: the gate's primary metric.
    """
    found = decision.metrics[metric]
    who = f"{DONE[decision.verdict]} {name}"
    numbers = f"{metric} {signed(found.gain)} [{plain(found.low)}, {plain(found.high)}]"
    if decision.verdict == "PROMOTE":
        return f"{who} v{version}: {numbers}" if version is not None else f"{who}: {numbers}"
    said = SAME_MODEL if SAME_MODEL in decision.reasons else numbers
    stays = "no champion yet"
    if decision.opponent == "champion":
        stays = f"champion v{decision.opponent_version} stays"
    return f"{who}: {said}, {stays}"


def signed(value: float) -> str:
    """A gain: three decimals, or one figure where three would show none of it."""
    return f"{value:+.1g}" if 0 < abs(value) < 0.0005 else f"{value + 0.0:+.3f}"


def plain(value: float) -> str:
    """A score or bound: three decimals, or one figure where three would show none of it."""
    return f"{value:.1g}" if 0 < abs(value) < 0.0005 else f"{value + 0.0:.3f}"


def percent(alpha: float) -> str:
    """The confidence of a one-sided bound at alpha: 0.05 is `95%`, 0.05/3 `98.3%`."""
    figures = 1 if alpha > 0.001 else 3
    return f"{round(100 * (1 - alpha), figures):g}%"


def many(count: int) -> str:
    """A number of rows, without false precision."""
    return f"about {count:,}" if count <= 10_000_000 else "over 10 million"
